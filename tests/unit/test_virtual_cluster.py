"""The pure half of the virtual cluster: rates, tc lines, names, Slurm's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.virtual_cluster.__main__ import main
from launch.virtual_cluster.links import Links, burst_bytes, parse_rate, receive_commands, send_commands
from launch.virtual_cluster.namespaces import missing_packages
from launch.virtual_cluster.slurm_conf import config_files
from launch.virtual_cluster.spec import ClusterError, ClusterSpec

SPEC = ClusterSpec(Path("/x"), num_nodes=3)


@pytest.mark.parametrize(
    ("text", "bits_per_s"),
    [("10gbit", 10**10), ("2.5Gbit", 2_500_000_000), ("100mbit", 10**8), ("8kbit", 8000), ("none", None)],
)
def test_rates(text: str, bits_per_s: int | None) -> None:
    assert parse_rate(text) == bits_per_s


@pytest.mark.parametrize("text", ["10", "10gb", "-1gbit", "0gbit", "fast", ""])
def test_wrong_rates_say_what_is_allowed(text: str) -> None:
    with pytest.raises(ClusterError, match="such as 10gbit"):
        parse_rate(text)


def test_a_burst_is_small_beside_a_kv_transfer() -> None:
    """At 1 Gb/s it must hide less than 1 % of the smallest interesting hand-off, 16 MiB; yet hold whole segments."""
    assert burst_bytes(10**9) < 0.01 * 16 * 2**20
    assert burst_bytes(10**6) >= 65536
    assert burst_bytes(10**10) == 625_000


def test_an_unshaped_link_has_no_qdisc() -> None:
    links = Links({"n1": "none"})
    assert send_commands(links, "n1", SPEC) == receive_commands(links, "n1") == []


def test_a_node_rate_shapes_both_directions() -> None:
    links = Links({"n1": "1gbit"})
    assert send_commands(links, "n1", SPEC) == [
        "qdisc add dev eth0 root tbf rate 1000000000bit burst 131072 limit 2631072"
    ]
    assert receive_commands(links, "n1") == ["qdisc add dev n1 root tbf rate 1000000000bit burst 131072 limit 2631072"]


def test_a_pair_rate_is_a_class_by_destination_at_both_senders() -> None:
    links = Links(dict.fromkeys(SPEC.nodes, "10gbit"))
    links.set_pair("n3", "n1", "1gbit")
    for sender, address in (("n1", "10.77.0.3"), ("n3", "10.77.0.1")):
        lines = send_commands(links, sender, SPEC)
        assert lines[0] == "qdisc add dev eth0 root handle 1: htb default 2"
        assert "classid 1:2 htb rate 10000000000bit" in lines[1]
        assert "classid 1:1 htb rate 1000000000bit" in lines[3]
        assert lines[-1].endswith(f"match ip dst {address}/32 flowid 1:1")
    assert len(send_commands(links, "n2", SPEC)) == 1
    links.set_pair("n1", "n3", "none")
    assert links.pairs == {}


def test_links_survive_a_round_trip(tmp_path: Path) -> None:
    links = Links({"n1": "1gbit", "n2": "none"})
    links.set_pair("n2", "n1", "5mbit")
    links.save(tmp_path)
    assert Links.load(tmp_path) == links
    with pytest.raises(ClusterError, match="no link to itself"):
        links.set_pair("n1", "n1", "1gbit")


def test_names_addresses_partitions() -> None:
    assert SPEC.hosts == ("login", "n1", "n2", "n3")
    assert [SPEC.address(host) for host in SPEC.hosts] == ["10.77.0.254", "10.77.0.1", "10.77.0.2", "10.77.0.3"]
    assert SPEC.partitions() == {"all": ("n1", "n2", "n3"), "prefill": ("n1", "n2"), "decode": ("n3",)}
    assert ClusterSpec(Path("/x"), num_nodes=1).partitions()["decode"] == ("n1",)
    for wrong in ("n0", "n4", "nx", ""):
        with pytest.raises(ClusterError, match="allowed are login, n1, n2, n3"):
            SPEC.check(wrong)


@pytest.mark.parametrize("wrong", [{"num_nodes": 0}, {"num_nodes": 65}, {"gpus_per_node": 7}])
def test_a_spec_out_of_range_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ClusterError, match="allowed are"):
        ClusterSpec(Path("/x"), **wrong)


def test_a_spec_survives_a_round_trip(tmp_path: Path) -> None:
    spec = ClusterSpec(tmp_path, num_nodes=2, rate="1gbit", cpus_per_node=4, gpus_per_node=0)
    assert spec.nodes  # a cached value must not be written
    spec.save()
    assert ClusterSpec.load(tmp_path) == spec


def test_slurm_files() -> None:
    files = config_files(SPEC)
    conf = files["etc/slurm.conf"].splitlines()
    assert "NodeName=n2 NodeAddr=10.77.0.2 CPUs=8 RealMemory=16384 Gres=gpu:fake:2 State=UNKNOWN" in conf
    assert "PartitionName=prefill Nodes=n1,n2 Default=NO MaxTime=INFINITE State=UP" in conf
    assert "PartitionName=all Nodes=n1,n2,n3 Default=YES MaxTime=INFINITE State=UP" in conf
    assert files["etc/gres.conf"].count("Type=fake") == 2
    assert "10.77.0.254 login\n" in files["hosts"]
    bare = config_files(ClusterSpec(Path("/x"), num_nodes=1, gpus_per_node=0))
    assert "Gres" not in bare["etc/slurm.conf"]
    assert bare["etc/gres.conf"] == ""


def test_missing_programs_name_their_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert {"iproute2", "munge", "slurm-wlm", "util-linux"} <= set(missing_packages())


def test_no_cluster_is_an_error_of_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["status"], ["run", "true"], ["kill", "n1"], ["shape", "1gbit"], ["down"]):
        assert main(["--dir", str(tmp_path), *command]) == 2
        assert capsys.readouterr().err.startswith(f"error: no virtual cluster in {tmp_path}: start one")
