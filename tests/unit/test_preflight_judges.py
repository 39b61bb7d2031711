"""The preflight's judges: every finding in each of its states, from made-up facts; no MPI, no UCX."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from xpyd.placement import PlacementConfig, PlacementError, place
from xpyd.preflight.facts import Gpus, NodeFacts, PairFacts, Port, RankFacts, UcxFacts
from xpyd.preflight.finding import Finding, Level, Topic, failed, ordered
from xpyd.preflight.judge_fabric import judge_infiniband, judge_opened, judge_routes, judge_ucx, wants_infiniband
from xpyd.preflight.judge_memory import judge_memory
from xpyd.preflight.judge_nodes import judge_cores, judge_disk, judge_gpus, judge_versions, span
from xpyd.preflight.judge_pairs import judge_pairs
from xpyd.preflight.judge_ranks import judge_clocks, judge_mpi, judge_placement, judge_silence, split_remedy
from xpyd.preflight.launched import Launched, judge_worlds, launched
from xpyd.preflight.options import CheckConfig
from xpyd.transport.fabric import FabricConfig
from xpyd.units import MIB

OK, WARNING, ERROR = Level.OK, Level.WARNING, Level.ERROR
GIB = 1024 * MIB
IB = Port("mlx5_0:1", "ACTIVE", 0)
TCP = UcxFacts("ucxx", "1.21.0", ("tcp/eth0", "tcp/lo"))
RC = replace(TCP, resources=("rc_mlx5/mlx5_0:1", "tcp/eth0"))
AUTO = FabricConfig("auto", 10.0)
WANTS_IB = FabricConfig("ib", 200.0, tls=("rc", "ud"))
STRICT_IB = replace(WANTS_IB, strict=True)
NODES = ("n1", "n1", "n2")


def node(**changes: Any) -> NodeFacts:
    plain = NodeFacts(
        memlock_bytes=None,
        available_bytes=64 * GIB,
        commit_left_bytes=None,
        swap_used_bytes=0,
        num_hugepages=0,
        hugepage_bytes=2 * MIB,
        transparent_hugepages="madvise",
        shm_free_bytes=8 * GIB,
        numa_cores=((0, 1, 2, 3), (4, 5, 6, 7)),
        interfaces=(Port("eth0", "up", 0),),
        infiniband=(),
        num_verbs_devices=0,
        gpus=Gpus(),
        versions={"python": "3.11.7", "commit": "a" * 40},
    )
    return replace(plain, **changes)


def rank(number: int, **changes: Any) -> RankFacts:
    plain = RankFacts(
        rank=number,
        node=NODES[number],
        cores=(number,),
        mpi="Open MPI v5.0.11",
        mpi_abi="openmpi ABI",
        ucx=TCP,
        clock_offset_ns=1000,
        clock_error_ns=20_000,
        token_seen=True,
        free_bytes=100 * GIB,
    )
    return replace(plain, **changes)


def ranks(**changes: Any) -> list[RankFacts]:
    return [rank(number, **changes) for number in range(3)]


def with_infiniband(**changes: Any) -> NodeFacts:
    return node(infiniband=(IB,), num_verbs_devices=1, **changes)


def both(facts: NodeFacts) -> dict[str, NodeFacts]:
    return {"n1": facts, "n2": facts}


def worst(findings: list[Finding]) -> Finding:
    """The finding that matters most; the first of its level."""
    assert findings
    return max(findings, key=lambda finding: [OK, WARNING, ERROR].index(finding.level))


def expect(findings: list[Finding], level: Level, *words: str) -> Finding:
    """The worst finding has this level; it says the words, or where all are ok, some finding does."""
    found = worst(findings)
    told = findings if level is OK else [found]
    text = "\n".join(f"{finding.check}: {finding.found}; {finding.remedy}" for finding in told)
    assert found.level is level, text
    for word in words:
        assert word in text
    assert (found.remedy == "") == (level is OK), "what is not ok has a remedy, what is ok needs none"
    return found


PAIR = PairFacts(1, 2, "tcp/eth0", 0.02, 1.2e9)


@pytest.mark.parametrize(
    ("nodes", "changes", "level", "words"),
    [
        (["a", "a", "b"], {}, OK, ["1P1D: 3 ranks on 2 nodes"]),
        (["a", "a", "a"], {"allow_shared_node": True}, WARNING, ["share a node", "nodes of their own"]),
        (["a", "a", "a"], {}, ERROR, ["puts prefill and decode on one node", "placement.allow_shared_node=true"]),
        (["a", "b"], {}, ERROR, ["needs 3 ranks", "start 3"]),
        (["a", "b"], {"num_prefill": 0, "num_decode": 0, "num_colocated": 1}, OK, ["colocated, no KV pairs"]),
    ],
)
def test_placement(nodes: list[str], changes: dict[str, Any], level: Level, words: list[str]) -> None:
    config = PlacementConfig(**{"num_prefill": 1, "num_decode": 1, **changes})
    refusal, placement = "", place(PlacementConfig(1, 1, allow_shared_node=True), ["a", "a", "a"])
    try:
        placement = place(config, nodes)
    except PlacementError as error:
        refusal = str(error)
    expect(judge_placement(placement, config.name, refusal), level, *words)


def test_mpi_agrees_or_is_named_by_rank() -> None:
    expect(judge_mpi(ranks()), OK, "Open MPI v5.0.11 on all 3 ranks")
    other = [*ranks()[:2], rank(2, mpi="MPICH 4.3")]
    expect(judge_mpi(other), ERROR, "library", "rank 0, rank 1: Open MPI v5.0.11; rank 2: MPICH 4.3", "one MPI")
    expect(judge_mpi([*ranks()[:2], rank(2, mpi_abi="mpich ABI")]), ERROR, "ABI", "rank 2: mpich ABI")


def test_ranks_that_do_not_hear_each_other_are_named_once() -> None:
    expect([judge_silence([(1, 3), (3, 1), (0, 3)], 10)], ERROR, "ranks 0 and 3, 1 and 3", "within 10 s", "firewall")


@pytest.mark.parametrize(
    ("environ", "found"),
    [
        ({}, None),
        ({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}, None),  # a batch script
        ({"SLURM_STEP_NUM_TASKS": "3", "SLURM_PROCID": "1"}, Launched("srun", 3, 1)),
        (
            {
                "OMPI_COMM_WORLD_SIZE": "4",
                "OMPI_COMM_WORLD_RANK": "2",
                "SLURM_STEP_NUM_TASKS": "1",
                "SLURM_PROCID": "0",
            },
            Launched("mpirun of Open MPI", 4, 2),
        ),
        ({"PMI_SIZE": "2", "PMI_RANK": "0"}, Launched("srun --mpi=pmi2, or MPICH's mpirun,", 2, 0)),
    ],
)
def test_what_the_launcher_believes(environ: dict[str, str], found: Launched | None) -> None:
    assert launched(environ) == found


@pytest.mark.parametrize(
    ("num_tasks", "world_size", "words"),
    [
        (3, 3, None),
        (1, 1, None),
        (1, None, None),
        (3, 1, ["3 worlds of one rank", "each sees a world of 1 (Open MPI)", "--mpi=pmix"]),
        (3, None, ["3 worlds of one rank", "offers them no PMI", "pmi2"]),
    ],
)
def test_worlds_of_one_rank(num_tasks: int, world_size: int | None, words: list[str] | None) -> None:
    found = judge_worlds(Launched("srun", num_tasks, 0), world_size, "Open MPI")
    assert (found is None) == (words is None)
    if found is not None and words is not None:
        expect([found], ERROR, *words)
    assert judge_worlds(None, 1, "Open MPI") is None


def test_clocks_beyond_their_bound_are_named() -> None:
    expect(judge_clocks(ranks(), 1e-3), OK, "rank 1 1 us ± 20 us")
    expect(judge_clocks([rank(1, clock_offset_ns=0, clock_error_ns=0)], 1e-3), OK, "rank 1 0 (one clock)")
    found = judge_clocks([rank(1), rank(2, clock_error_ns=2_000_000)], 1e-3)
    expect(found, WARNING, "rank 2", "± 2 ms on n2", "check.max_clock_error_s=0.001")
    assert [finding.level for finding in found] == [OK, WARNING]


@pytest.mark.parametrize(
    ("changed", "needed", "level", "words"),
    [
        ({}, True, OK, ["UCX 1.21.0 by ucxx on all 3 ranks"]),
        ({"ucx": replace(TCP, version="1.15.0")}, True, ERROR, ["rank 2: UCX 1.15.0", "one UCX on every node"]),
        ({"ucx": UcxFacts(error="no UCX here; pip install it")}, True, ERROR, ["rank 2 on n2", "pip install it"]),
        ({"ucx": UcxFacts(error="no UCX here; pip install it")}, False, OK, ["needs none"]),
    ],
)
def test_ucx(changed: dict[str, Any], needed: bool, level: Level, words: list[str]) -> None:
    expect(judge_ucx([rank(0), rank(1), rank(2, **changed)], needed), level, *words)


def test_what_ucx_could_use_is_told_by_node() -> None:
    found = judge_ucx([rank(0), rank(1), rank(2, ucx=RC)], True)
    assert found[-1].found == "n1: tcp/eth0, tcp/lo; n2: rc_mlx5/mlx5_0:1, tcp/eth0"


@pytest.mark.parametrize(
    ("facts", "ucx", "fabric", "level", "words"),
    [
        (node(), TCP, AUTO, OK, ["no device"]),
        (node(), TCP, WANTS_IB, ERROR, ["there is no device", "fabric=tcp"]),
        (with_infiniband(), RC, AUTO, OK, ["mlx5_0:1 ACTIVE, rc in UCX"]),
        (with_infiniband(), RC, WANTS_IB, OK, ["rc in UCX"]),
        (with_infiniband(), TCP, AUTO, WARNING, ["no rc or dc transport", "ib plug-in"]),
        (with_infiniband(), TCP, WANTS_IB, ERROR, ["no rc or dc transport"]),
        (
            node(infiniband=(replace(IB, state="DOWN"),)),
            RC,
            AUTO,
            WARNING,
            ["mlx5_0:1 DOWN: no port is active", "ibstat"],
        ),
        (node(infiniband=(IB,)), RC, AUTO, WARNING, ["/dev/infiniband/uverbs", "container"]),
    ],
)
def test_infiniband(facts: NodeFacts, ucx: UcxFacts, fabric: FabricConfig, level: Level, words: list[str]) -> None:
    found = judge_infiniband(both(facts), ranks(ucx=ucx), fabric)
    expect(found, level, "n1, n2", *words)
    assert len(found) == 1, "nodes alike are said once"


@pytest.mark.parametrize(
    ("tls", "wanted"), [(("rc", "ud"), True), (("dc_x",), True), (("rc_verbs",), True), (("tcp",), False), ((), False)]
)
def test_what_asks_for_infiniband(tls: tuple[str, ...], wanted: bool) -> None:
    assert wants_infiniband(FabricConfig("any", 10.0, tls=tls)) is wanted


def test_a_transport_that_does_not_open_is_an_error_with_the_remedy() -> None:
    expect(judge_opened({"n1 (rank 0)": "", "n2 (rank 1)": ""}), OK, "every rank opened")
    found = judge_opened({"n1 (rank 0)": "", "n2 (rank 1)": "no device eth7; it has eth0"})
    expect(found, ERROR, "n2 (rank 1)", "no device eth7", "it has eth0")
    expect(judge_opened({"n1 (rank 0)": "fails (a; b)"}), ERROR, "fails (a; b)", "stderr")


@pytest.mark.parametrize(
    ("route", "facts", "fabric", "level", "words"),
    [
        ("tcp/eth0", node(), AUTO, OK, ["tcp/eth0"]),
        ("rc_mlx5/mlx5_0:1", with_infiniband(), AUTO, OK, ["rc_mlx5"]),
        ("unknown", with_infiniband(), AUTO, OK, ["MPI does not say"]),
        (
            "tcp/eth0",
            with_infiniband(),
            AUTO,
            WARNING,
            ["fallback: KV goes over tcp/eth0, though both nodes have InfiniBand"],
        ),
        ("tcp/eth0", with_infiniband(), FabricConfig("tcp", 10.0, tls=("tcp",)), OK, ["tcp/eth0"]),
        ("tcp/eth0", with_infiniband(), FabricConfig("eth", 10.0, net_devices=("eth0",)), OK, ["tcp/eth0"]),
        ("tcp/eth0", node(), WANTS_IB, WARNING, ["fallback", "['rc', 'ud'] was asked for"]),
        ("tcp/eth0", node(), STRICT_IB, ERROR, ["fabric.strict=true", "fallback", "fabric=tcp"]),
        ("ud_verbs/mlx5_0:1", with_infiniband(), WANTS_IB, WARNING, ["datagrams only"]),
    ],
)
def test_routes(route: str, facts: NodeFacts, fabric: FabricConfig, level: Level, words: list[str]) -> None:
    found = judge_routes([replace(PAIR, route=route)], NODES, both(facts), fabric)
    expect(found, level, *words)
    if level is not OK:
        assert found[0].check == "route 1->2"


def test_a_fallback_needs_infiniband_at_both_ends() -> None:
    nodes = {"n1": with_infiniband(), "n2": node()}
    expect(judge_routes([PAIR], NODES, nodes, AUTO), OK)


@pytest.mark.parametrize(
    ("pair", "level", "words"),
    [
        (PAIR, OK, ["1->2 9.6 Gb/s, 96 % of fabric.rate_gbps=10"]),
        (
            replace(PAIR, rate_bytes_per_s=0.5e9),
            WARNING,
            ["bandwidth 1->2", "4 Gb/s, 40 %", "check.min_rate_share=0.7"],
        ),
        (
            replace(PAIR, rate_bytes_per_s=5e9),
            WARNING,
            ["40 Gb/s, 400 %", "check.max_rate_share=1.5", "set fabric.rate_gbps"],
        ),
        (
            PairFacts(1, 2, error="rank 2 did not answer within 10 s"),
            ERROR,
            ["connection 1->2: n1 -> n2: rank 2 did not answer within 10 s", "firewall", "fabric.net_devices"],
        ),
        (
            PairFacts(1, 2, "tcp/eth0", error="arrived with the wrong checksum"),
            ERROR,
            ["echo 1->2", "bytes changed on the way"],
        ),
        (
            PairFacts(1, 2, "tcp/eth0", 0.01, error="did not answer"),
            ERROR,
            ["bandwidth 1->2: n1 -> n2: did not answer"],
        ),
        (PairFacts(1, 2, unprobed=True), ERROR, ["1->2: not probed", "findings on the fabric"]),
    ],
)
def test_pairs(pair: PairFacts, level: Level, words: list[str]) -> None:
    expect(judge_pairs([pair], NODES, CheckConfig(), 10.0), level, *words)


def test_a_silent_pair_leaves_the_others_their_findings() -> None:
    found = judge_pairs(
        [PairFacts(1, 2, error="silent"), PairFacts(0, 2, "tcp/eth0", 0.02, 1.2e9)], NODES, CheckConfig(), 10.0
    )
    assert [(f.check, f.level) for f in found] == [("connection 1->2", ERROR), ("echo", OK), ("bandwidth", OK)]


@pytest.mark.parametrize(
    ("facts", "wants_ib", "level", "words"),
    [
        (node(), False, OK, ["pool 1 GiB a worker", "memlock unlimited"]),
        (node(memlock_bytes=8 * MIB), False, OK, ["memlock 8 MiB"]),
        (with_infiniband(memlock_bytes=8 * MIB), False, WARNING, ["memlock on n1, n2", "8 MiB", "LimitMEMLOCK"]),
        (node(memlock_bytes=8 * MIB), True, ERROR, ["InfiniBand cannot register it"]),
        (with_infiniband(memlock_bytes=2 * GIB), True, OK, ["memlock 2 GiB"]),
        (node(available_bytes=MIB), False, ERROR, ["1 GiB, 1 MiB are available", "scheduler.num_kv_blocks"]),
        (node(commit_left_bytes=MIB), False, ERROR, ["1 MiB are left to commit"]),
        (node(commit_left_bytes=2 * GIB), False, OK, []),
        (node(shm_free_bytes=MIB), False, WARNING, ["/dev/shm", "--shm-size"]),
        (node(swap_used_bytes=GIB), False, WARNING, ["swap", "swapoff"]),
    ],
)
def test_memory(facts: NodeFacts, wants_ib: bool, level: Level, words: list[str]) -> None:
    expect(judge_memory(both(facts), ranks(), GIB, wants_ib), level, *words)


def test_the_pools_of_a_node_count_together() -> None:
    here = [rank(0), rank(1), rank(2, node="n1")]
    two_fit = {"n1": node(available_bytes=2 * GIB)}
    assert worst(judge_memory(two_fit, here, GIB, False)).level is OK
    expect(judge_memory({"n1": node(available_bytes=2 * GIB - 1)}, here, GIB, False), ERROR, "2 GiB")


def test_hugepages_are_told() -> None:
    found = judge_memory(both(node(num_hugepages=4)), ranks(), GIB, False)
    assert found[-1].found == "reserved: 4 x 2 MiB; transparent: madvise"


@pytest.mark.parametrize(
    ("changes", "facts", "device", "level", "words"),
    [
        ({"cores": (2,)}, node(), "eth0", OK, ["rank 2: cores 2"]),
        (
            {"cores": (1,), "node": "n1"},
            node(),
            "",
            WARNING,
            ["cores on n1", "ranks 1 and 2 share cores", "cpus-per-task"],
        ),
        ({"cores": (3, 4)}, node(), "", WARNING, ["NUMA of rank 2", "NUMA nodes 0, 1", "--bind-to numa"]),
        ({"cores": (5,)}, node(), "eth0", WARNING, ["on NUMA node 1, eth0 is on NUMA node 0"]),
        ({"cores": (5,)}, with_infiniband(), "mlx5_0:1", WARNING, ["mlx5_0:1 is on NUMA node 0"]),
        ({"cores": (5,)}, node(interfaces=(Port("eth0", "up"),)), "eth0", OK, []),  # the kernel does not say
        ({"cores": ()}, node(numa_cores=()), "eth0", OK, []),
    ],
)
def test_cores(changes: dict[str, Any], facts: NodeFacts, device: str, level: Level, words: list[str]) -> None:
    found = judge_cores(both(facts), [rank(0), rank(1), rank(2, **changes)], {2: device})
    expect(found, level, *words)


def test_devices_are_told_by_node() -> None:
    found = judge_cores({"n1": node(), "n2": with_infiniband()}, ranks(), {})
    near = "2 NUMA node(s), eth0 up on NUMA node 0"
    assert found[-1].found == f"n1: {near}; n2: {near}, mlx5_0:1 ACTIVE on NUMA node 0"


def test_cores_are_told_as_ranges() -> None:
    assert span((7, 0, 1, 2, 4)) == "0-2,4,7"
    assert span(()) == ""


@pytest.mark.parametrize(
    ("gpus", "level", "words"),
    [
        (Gpus(), OK, ["no GPU on this node (n1, n2)"]),
        (Gpus(8, 8, peermem=True), OK, ["8 GPU(s), through nvidia_peermem"]),
        (Gpus(8, 1, open_driver=True), OK, ["1 GPU(s), through dmabuf"]),
        (Gpus(8, 8), WARNING, ["no network device can reach their memory", "modprobe nvidia_peermem"]),
        (Gpus(8, 0, peermem=True), WARNING, ["none visible to CUDA", "CUDA_VISIBLE_DEVICES"]),
    ],
)
def test_gpu_direct(gpus: Gpus, level: Level, words: list[str]) -> None:
    expect(judge_gpus(both(node(gpus=gpus))), level, *words)


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, ["commit aaaaaaaaaaaa", "python 3.11.7"]),
        ({"commit": "b" * 40}, ERROR, [f"n1: {'a' * 40}; n2: {'b' * 40}", "one checkout"]),
        ({"python": "3.12.1"}, WARNING, ["n1: 3.11.7; n2: 3.12.1", "--constraint"]),
        ({"torch": "2.4.0"}, ERROR, ["n1: not installed; n2: 2.4.0"]),
    ],
)
def test_versions(changes: dict[str, str], level: Level, words: list[str]) -> None:
    nodes = {"n1": node(), "n2": node(versions={**node().versions, **changes})}
    expect(judge_versions(nodes), level, *words)


def test_a_changed_checkout_shows() -> None:
    found = judge_versions(both(node(versions={"commit": "a" * 40 + "+changes"})))
    assert found[-1].found == "commit aaaaaaaaaaaa+changes"


@pytest.mark.parametrize(
    ("changes", "level", "words"),
    [
        ({}, OK, ["runs: seen by all 3 ranks"]),
        (
            {"token_seen": False, "free_bytes": 0},
            ERROR,
            ["ranks 2 on n2 do not see", "run.root=runs", "all nodes mount"],
        ),
        ({"free_bytes": MIB}, WARNING, ["1 MiB free", "check.min_free_bytes"]),
    ],
)
def test_disk(changes: dict[str, Any], level: Level, words: list[str]) -> None:
    expect(judge_disk([rank(0), rank(1), rank(2, **changes)], "runs", GIB), level, *words)


def test_errors_fail_and_warnings_only_where_strict() -> None:
    ok, warning, error = (Finding(Topic.MPI, "a", level, "b") for level in (OK, WARNING, ERROR))
    assert [failed(found, strict) for found in ([ok], [ok, warning], [warning, error]) for strict in (False, True)] == [
        False,
        False,
        False,
        True,
        True,
        True,
    ]


def test_findings_are_grouped_by_topic() -> None:
    found = [
        Finding(topic, str(i), OK, "") for i, topic in enumerate((Topic.DISK, Topic.MPI, Topic.DISK, Topic.PLACEMENT))
    ]
    assert [finding.check for finding in ordered(found)] == ["3", "1", "0", "2"]


def test_a_message_gives_up_its_remedy() -> None:
    assert split_remedy("wrong; do this") == ("wrong", "do this")
    assert split_remedy("wrong (a; b)", "do that") == ("wrong (a; b)", "do that")
    assert split_remedy("wrong") == ("wrong", "")
