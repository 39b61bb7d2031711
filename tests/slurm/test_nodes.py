"""Nodes are apart from one another, links have the rate they are given, and a power failure is one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.conftest import PROGRAMS, ROOT, VirtualCluster, wait_for

STREAM = str(PROGRAMS / "stream.py")
SILENCE = str(PROGRAMS / "silence.py")
MIB = 1 << 20


def stream_mbits_per_s(cluster: VirtualCluster, sender: str, receiver: str, num_bytes: int) -> float:
    """The rate at which ``receiver`` really received a plain socket's bytes."""
    listener = cluster.start("exec", receiver, "python3", STREAM, "receive")
    assert listener.stdout is not None
    assert listener.stdout.readline() == "listening\n"
    address = cluster.status()[receiver]["address"]
    cluster.on(sender, "python3", STREAM, "send", address, str(num_bytes))
    output, errors = listener.communicate(timeout=60)
    assert listener.returncode == 0, errors
    return float(output)


def best_mbits_per_s(cluster: VirtualCluster, sender: str, receiver: str, num_bytes: int, rate: float) -> float:
    """The fastest of some streams, up to the first that comes near ``rate``: none is slow but by other work here."""
    best = 0.0
    for _ in range(6):
        best = max(best, stream_mbits_per_s(cluster, sender, receiver, num_bytes))
        if best > 0.9 * rate:
            break
    return best


@pytest.fixture
def unshaped_after(cluster: VirtualCluster) -> Iterator[None]:
    yield
    for pair in (("n1", "n2"), ("n1", "n3")):
        cluster.call("shape", "none", "--pair", *pair)
    cluster.call("shape", "none")


@pytest.mark.usefixtures("unshaped_after")
def test_a_shaped_rate_holds(cluster: VirtualCluster) -> None:
    cluster.call("shape", "400mbit")
    assert best_mbits_per_s(cluster, "n1", "n2", 48 * MIB, 400) == pytest.approx(400, rel=0.15)
    cluster.call("shape", "800mbit", "--node", "n3")
    assert best_mbits_per_s(cluster, "n3", "n4", 48 * MIB, 400) == pytest.approx(400, rel=0.15), (
        "the slower end decides"
    )
    cluster.call("shape", "none")
    assert best_mbits_per_s(cluster, "n1", "n2", 256 * MIB, 1200) > 1000


@pytest.mark.usefixtures("unshaped_after")
def test_a_pair_has_a_rate_of_its_own(cluster: VirtualCluster) -> None:
    cluster.call("shape", "800mbit")
    cluster.call("shape", "200mbit", "--pair", "n1", "n2")
    cluster.call("shape", "100mbit", "--pair", "n3", "n1")
    assert cluster.status()["n1"]["pair_rates"] == {"n2": "200mbit", "n3": "100mbit"}
    for sender, receiver, rate in (("n1", "n2", 200), ("n2", "n1", 200), ("n1", "n3", 100), ("n1", "n4", 800)):
        measured = best_mbits_per_s(cluster, sender, receiver, rate * MIB // 8, rate)
        assert measured == pytest.approx(rate, rel=0.15), f"{sender} to {receiver}"


def test_temporary_files_of_nodes_are_apart(cluster: VirtualCluster) -> None:
    """Or mpirun's daemons on two nodes, or in two clusters, take each other's session folders."""
    cluster.on("n1", "sh", "-c", "touch $TMPDIR/mine")
    assert "mine" not in cluster.on("n2", "sh", "-c", "ls $TMPDIR")
    agent = str(ROOT / "launch/agent")
    assert "mine" in cluster.run(agent, "n1", "ls", "$TMPDIR")
    assert "mine" not in cluster.run(agent, "n2", "ls", "$TMPDIR")


def test_counters_see_the_bytes(cluster: VirtualCluster) -> None:
    before = cluster.status()
    stream_mbits_per_s(cluster, "n2", "n3", 32 * MIB)
    after = cluster.status()
    for node, counter in (("n2", "sent_bytes"), ("n3", "received_bytes")):
        counted = after[node][counter] - before[node][counter]
        # Headers, and what TCP sends again where the machine stalls: 2.2 % once. Bytes counted twice: 100 %.
        assert 32 * MIB < counted < 1.5 * 32 * MIB, f"{counter} of {node}"
    assert after["n4"]["received_bytes"] - before["n4"]["received_bytes"] < MIB
    assert cluster.on("n3", "ls", "/sys/class/net").split() == ["eth0", "lo"]
    seen = int(cluster.on("n3", "cat", "/sys/class/net/eth0/statistics/rx_bytes"))
    assert 0 <= seen - after["n3"]["received_bytes"] < MIB, "a program on the node reads the same counter"


def test_nodes_are_apart(cluster: VirtualCluster, tmp_path: Path) -> None:
    assert cluster.on("n2", "sh", "-c", "hostname; pwd", cwd=tmp_path) == f"n2\n{tmp_path}\n"
    assert cluster.run("hostname") == "login\n"
    cluster.on("n2", "touch", "/dev/shm/mine", "/run/mine")
    cluster.on("n1", "ls", "/dev/shm/mine", code=2)
    cluster.on("n1", "ls", "/run/mine", code=2)
    cluster.on("n2", "rm", "/dev/shm/mine", "/run/mine")
    assert not Path("/dev/shm/mine").exists()
    spaces = [cluster.on(node, "readlink", "/proc/self/ns/ipc") for node in ("n1", "n2", "login")]
    assert len({*spaces, os.readlink("/proc/self/ns/ipc") + "\n"}) == 4


def test_commands_keep_their_exit_code(cluster: VirtualCluster) -> None:
    cluster.on("n1", "sh", "-c", "exit 7", code=7)
    assert "no node 'n9'" in cluster.on("n9", "true", code=2)
    assert "no command" in cluster.run(code=2)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_command_ends_with_its_front(cluster: VirtualCluster, tmp_path: Path, number: int) -> None:
    front = cluster.start("exec", "n1", "sh", "-c", f"echo $$ > {tmp_path}/pid; exec sleep 1000")
    pid_file = tmp_path / "pid"
    wait_for(lambda: pid_file.exists() and pid_file.read_text(), "the command")
    front.send_signal(number)
    front.wait()
    inside = pid_file.read_text().strip()
    wait_for(lambda: inside not in cluster.run("ps", "-eo", "pid=").split(), "the end of the command")


def test_power_failure_and_boot(cluster: VirtualCluster) -> None:
    victim = cluster.start("exec", "n4", "python3", SILENCE, "listen")
    assert victim.stdout is not None
    assert victim.stdout.readline() == "listening\n"
    peer = cluster.start("exec", "n1", "python3", SILENCE, "n4")
    assert peer.stdout is not None
    assert peer.stdout.readline() == "connected\n"
    cluster.call("kill", "n4")
    assert victim.wait(30) != 0
    output, errors = peer.communicate(timeout=60)
    assert output == "silence\n", f"a machine without power says no goodbye; {errors}"
    row = cluster.status()["n4"]
    assert (row["up"], row["received_bytes"], row["sent_bytes"]) == (False, -1, -1)
    assert "n4 is down" in cluster.on("n4", "true", code=2)
    assert "n4 is down" in cluster.call("kill", "n4", code=2)
    cluster.call("boot", "n4")
    assert cluster.status()["n4"]["up"]
    assert cluster.run("srun", "-w", "n4", "hostname") == "n4\n"
    assert "up already" in cluster.call("boot", "n4", code=2)
