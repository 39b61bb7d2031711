"""What the preflight gathers and how: facts from a made-up /proc and /sys, rounds of pairs, the watch, the tables."""

from __future__ import annotations

import io
import json
import threading
from pathlib import Path

import numpy as np
import pytest

from tests.unit.test_config import composed
from xpyd.config.base import ConfigError
from xpyd.config.load import load_config
from xpyd.preflight.facts import Gpus, PairFacts, Port
from xpyd.preflight.finding import Finding, Level, Topic
from xpyd.preflight.node import gather_node, gpus, infiniband_ports, interfaces, meminfo, numa_cores, parse_cores
from xpyd.preflight.outcome import WRONG_CHECKSUM, Side, merge, with_bandwidth
from xpyd.preflight.pairs import pattern, rounds
from xpyd.preflight.show import print_findings, print_ranks, write_findings
from xpyd.preflight.software import loaded_libraries
from xpyd.preflight.watch import EXIT_CODE, Watch
from xpyd.run_dir import RunDir

ROOT = Path(__file__).parents[2]


def write(root: Path, name: str, text: str) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_memory_is_read_in_bytes(tmp_path: Path) -> None:
    write(tmp_path, "proc/meminfo", "MemAvailable:    1024 kB\nHugePages_Total:       3\nHugepagesize:    2048 kB\n")
    assert meminfo(tmp_path) == {"MemAvailable": 1 << 20, "HugePages_Total": 3, "Hugepagesize": 2 << 20}


def test_a_node_with_infiniband_and_two_numa_nodes(tmp_path: Path) -> None:
    device = "sys/class/infiniband/mlx5_0"
    write(tmp_path, f"{device}/ports/1/state", "4: ACTIVE\n")
    write(tmp_path, f"{device}/ports/2/state", "1: DOWN\n")
    write(tmp_path, f"{device}/device/numa_node", "1\n")
    write(tmp_path, "dev/infiniband/uverbs0", "")
    write(tmp_path, "sys/devices/system/node/node0/cpulist", "0-1\n")
    write(tmp_path, "sys/devices/system/node/node1/cpulist", "2,3\n")
    assert infiniband_ports(tmp_path) == (Port("mlx5_0:1", "ACTIVE", 1), Port("mlx5_0:2", "DOWN", 1))
    assert numa_cores(tmp_path) == ((0, 1), (2, 3))
    facts = gather_node(ROOT, tmp_path)
    assert facts.active_infiniband == ["mlx5_0:1"]
    assert facts.num_verbs_devices == 1


@pytest.mark.parametrize(("mode", "left"), [("0", None), ("2", 4096)])
def test_what_is_left_to_commit_counts_only_without_overcommit(tmp_path: Path, mode: str, left: int | None) -> None:
    write(tmp_path, "proc/meminfo", "CommitLimit: 10 kB\nCommitted_AS: 6 kB\nSwapTotal: 8 kB\nSwapFree: 5 kB\n")
    write(tmp_path, "proc/sys/vm/overcommit_memory", f"{mode}\n")
    write(tmp_path, "sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
    facts = gather_node(ROOT, tmp_path)
    assert facts.commit_left_bytes == left
    assert facts.swap_used_bytes == 3072
    assert facts.transparent_hugepages == "madvise"


def test_gpus_and_how_their_memory_is_reached(tmp_path: Path) -> None:
    assert gpus(tmp_path).num_devices == 0
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        write(tmp_path, f"dev/{name}", "")
    write(tmp_path, "sys/module/nvidia_peermem/refcnt", "0")
    write(tmp_path, "proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  560.35\n")
    found = gpus(tmp_path)
    assert (found.num_devices, found.peermem, found.open_driver) == (2, True, True)


def test_this_node_has_facts() -> None:
    facts = gather_node(ROOT)
    assert facts.available_bytes > 0
    assert {"python", "kernel", "commit"} <= set(facts.versions)
    assert facts.gpus.num_devices >= facts.gpus.num_visible or facts.gpus == Gpus()


def test_interfaces_are_those_of_this_network_namespace(tmp_path: Path) -> None:
    assert "lo" not in {port.name for port in interfaces(tmp_path)}
    assert all(port.state == "unknown" for port in interfaces(tmp_path)), "nothing is made up where /sys is empty"


def test_lists_of_cores() -> None:
    assert parse_cores("0-2,8\n") == (0, 1, 2, 8)
    assert parse_cores("") == ()


def test_loaded_libraries_are_read_from_the_map(tmp_path: Path) -> None:
    write(tmp_path, "maps", "7f0-7f1 r-xp 0 fd:01 42   /opt/lib/libmpi.so.40.40.1\n7f2-7f3 rw-p 0 00:00 0 [heap]\n")
    assert loaded_libraries(tmp_path / "maps") == {"libmpi.so.40.40.1"}


@pytest.mark.parametrize(
    ("sources", "destinations"), [((1,), (2,)), ((1, 2), (3,)), ((1,), (2, 3, 4)), ((1, 2, 3), (4, 5))]
)
def test_rounds_ask_every_pair_once_and_no_rank_twice_at_a_time(
    sources: tuple[int, ...], destinations: tuple[int, ...]
) -> None:
    turns = rounds(sources, destinations)
    assert sorted(pair for turn in turns for pair in turn) == [(s, d) for s in sources for d in destinations]
    for turn in turns:
        busy = [rank for pair in turn for rank in pair]
        assert len(busy) == len(set(busy))
    assert len(turns) == max(len(sources), len(destinations))


def test_no_pairs_no_rounds() -> None:
    assert rounds((), ()) == []


def test_patterns_tell_pairs_apart() -> None:
    assert (pattern((1, 2), 64) == pattern((1, 2), 64)).all()
    assert (pattern((1, 2), 64) != pattern((2, 1), 64)).any()
    assert pattern((1, 2), 64).dtype == np.uint8


def test_both_ends_of_a_pair_make_one_outcome() -> None:
    pairs = [(1, 3), (2, 3)]
    good, bad = Side("", "tcp/eth0", (0.3, 0.1, 0.2)), Side("silent")
    sides = [{}, {(1, 3): good}, {(2, 3): good}, {(1, 3): Side("", "tcp/eth0"), (2, 3): bad}]
    found = merge(pairs, sides, ["", "", "", ""])
    assert found == [PairFacts(1, 3, "tcp/eth0", 0.2), PairFacts(2, 3, "tcp/eth0", None, None, "silent")]
    wrong = [Side(f"{WRONG_CHECKSUM}, said by rank {rank}") for rank in (1, 3)]
    found = merge([(1, 3)], [{}, {(1, 3): wrong[0]}, {}, {(1, 3): wrong[1]}], [""] * 4)
    assert found[0].error.endswith("rank 3"), "the destination saw the bytes first"
    assert merge(pairs, sides, ["", "no device", "", ""])[0] == PairFacts(1, 3, unprobed=True)


def test_bandwidth_is_the_median_window_of_the_destination() -> None:
    pair = PairFacts(1, 2, "tcp/eth0", 0.2)
    timed = with_bandwidth(pair, Side(), Side(seconds=(1.0, 4.0, 2.0)), 1024)
    assert timed.rate_bytes_per_s == 512
    assert with_bandwidth(pair, Side("silent"), Side(seconds=(1.0,)), 1024).error == "a window of 1 KiB: silent"


def test_a_stage_that_does_not_end_ends_the_process_with_its_name() -> None:
    said: list[tuple[str, float]] = []
    codes: list[int] = []
    ended = threading.Event()

    def end(code: int) -> None:
        codes.append(code)
        ended.set()

    watch = Watch(lambda stage, bound_s: said.append((stage, bound_s)), end)
    watch.stage("first", 600)
    watch.rest()
    watch.stage("second", 0.01)
    assert ended.wait(30)
    assert said == [("second", 0.01)]
    assert codes == [EXIT_CODE]


FINDINGS = [
    Finding(Topic.PAIRS, "route 1->2", Level.ERROR, "fallback [tcp/eth0]", "check the device"),
    Finding(Topic.MPI, "library", Level.OK, "Open MPI"),
]


def test_findings_are_printed_and_written_by_topic(tmp_path: Path) -> None:
    out = io.StringIO()
    print_findings(FINDINGS, out)
    text = out.getvalue()
    assert text.index("Open MPI") < text.index("fallback [tcp/eth0]") < text.index("do: check the device")
    assert text.splitlines()[-1] == "1 error, 0 warnings, 1 ok"
    write_findings(RunDir(tmp_path), FINDINGS, ranks=[])
    content = json.loads((tmp_path / "findings.json").read_text())
    assert (content["num_errors"], content["num_warnings"], content["ranks"]) == (1, 0, [])
    assert content["findings"][1] == {
        "topic": "pairs",
        "check": "route 1->2",
        "level": "error",
        "found": "fallback [tcp/eth0]",
        "remedy": "check the device",
    }


def test_ranks_are_printed() -> None:
    out = io.StringIO()
    print_ranks([(0, "n1", "client", "0-1")], out)
    assert out.getvalue().splitlines()[-2].split() == ["0", "n1", "client", "0-1"]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("check.timeout_s=0", r"check\.timeout_s=0: .*greater than 0"),
        ("check.min_rate_share=2", r"min_rate_share=2.0 is not below max_rate_share=1.5"),
        ("+check.timeouts=1", r"check\.timeouts=1: no such key; did you mean timeout_s"),
    ],
)
def test_wrong_options_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(composed("check_cluster", override))
