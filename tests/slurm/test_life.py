"""A cluster comes up, works, and leaves nothing behind, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.slurm.conftest import ROOT, VirtualCluster, alive, wait_for

KINDS = ("net", "uts", "ipc", "mnt", "pid")


@dataclass(frozen=True)
class Traces:
    """What a running cluster consists of, as the host sees it."""

    pids: tuple[int, ...]
    namespaces: frozenset[str]

    def left(self) -> tuple[list[int], set[str]]:
        here = {name for pid in os.listdir("/proc") if pid.isdigit() for name in namespaces_of(int(pid))}
        return alive(self.pids), set(self.namespaces) & here


def namespaces_of(pid: int) -> set[str]:
    try:
        return {os.readlink(f"/proc/{pid}/ns/{kind}") for kind in KINDS}
    except OSError:
        return set()


def traces(folder: Path) -> Traces:
    """All processes inside the PID namespace of the cluster's init, its parent, and all their namespaces."""
    init = int((folder / "pid").read_text())
    inside = os.readlink(f"/proc/{init}/ns/pid")
    parent = int(Path(f"/proc/{init}/stat").read_text().rpartition(")")[2].split()[1])
    pids = [int(pid) for pid in os.listdir("/proc") if pid.isdigit() and inside in namespaces_of(int(pid))]
    found = set().union(*(namespaces_of(pid) for pid in pids)) - namespaces_of(os.getpid())
    return Traces((parent, *pids), frozenset(found))


def links_and_mounts() -> tuple[list[str], str]:
    """Network devices and mounts of the host."""
    return sorted(os.listdir("/sys/class/net")), Path("/proc/self/mountinfo").read_text()


def start_foreground(mine: VirtualCluster) -> subprocess.Popen[str]:
    front = mine.start("up", "-n", "2", "--foreground")
    assert front.stdout is not None
    line = front.stdout.readline()
    assert "2 nodes" in line, front.communicate()
    return front


@pytest.fixture
def mine(tmp_path: Path) -> VirtualCluster:
    return VirtualCluster(tmp_path / "vc")


def test_down_leaves_nothing(mine: VirtualCluster) -> None:
    before = links_and_mounts()
    mine.call("up", "-n", "3")
    running = traces(mine.folder)
    # A namespace set of the cluster, of the login node and of three nodes, with init, munged and a Slurm daemon each.
    assert len(running.namespaces) == 3 + 1 + 4 * 4
    assert len(running.pids) >= 2 + 4 * 3
    assert set(mine.run("sinfo", "-h", "-N", "-p", "all", "-o", "%N %T").split("\n")) == {
        "n1 idle",
        "n2 idle",
        "n3 idle",
        "",
    }
    mine.call("down")
    assert running.left() == ([], set())
    assert links_and_mounts() == before
    assert not mine.folder.exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_the_end_of_the_front_ends_the_cluster(mine: VirtualCluster, number: int, code: int) -> None:
    before = links_and_mounts()
    front = start_foreground(mine)
    running = traces(mine.folder)
    command = mine.start("exec", "n1", "sleep", "1000")
    front.send_signal(number)
    assert front.wait(30) == code
    wait_for(lambda: running.left() == ([], set()), f"the end of {running.left()}")
    assert command.wait(30) != 0
    assert links_and_mounts() == before
    if number == signal.SIGKILL:  # nobody was left to remove the folder; it is no obstacle
        assert "has ended" in mine.call("status", code=2)
        mine.call("up", "-n", "1")
        mine.call("down")
    assert not mine.folder.exists()


def test_a_front_killed_while_starting_leaves_nothing(mine: VirtualCluster) -> None:
    front = mine.start("up", "-n", "8")
    pid_file = mine.folder / "pid"
    wait_for(lambda: pid_file.exists() and pid_file.read_text(), "the init")
    running = traces(mine.folder)
    front.kill()
    front.wait()
    wait_for(lambda: running.left() == ([], set()), f"the end of {running.left()}")
    wait_for(lambda: f"{mine.folder}" not in host_commands(), "the end of daemons that were only starting")


def host_commands() -> str:
    return subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout


def test_a_killed_init_takes_everything_along(mine: VirtualCluster) -> None:
    mine.call("up", "-n", "2")
    running = traces(mine.folder)
    os.kill(running.pids[0], signal.SIGKILL)  # the parent of the init
    wait_for(lambda: running.left() == ([], set()), f"the end of {running.left()}")
    mine.call("down")
    assert not mine.folder.exists()


def test_down_ends_a_front_in_the_foreground(mine: VirtualCluster) -> None:
    front = start_foreground(mine)
    mine.call("down")
    assert front.wait(30) == 0


def test_a_folder_serves_one_cluster(mine: VirtualCluster, tmp_path: Path) -> None:
    mine.call("up", "-n", "1")
    try:
        assert "folder in use" in mine.call("up", code=2)
        assert mine.status()["n1"]["slurm"] == "idle"
    finally:
        mine.call("down")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "precious").touch()
    other = VirtualCluster(tmp_path / "other")
    assert "holds no cluster" in other.call("up", code=2)
    assert "no virtual cluster" in other.call("down", code=2)
    assert (tmp_path / "other" / "precious").exists()


def test_a_daemon_that_fails_is_shown_and_nothing_is_left(mine: VirtualCluster, tmp_path: Path) -> None:
    broken = tmp_path / "bin" / "slurmd"
    broken.parent.mkdir()
    broken.write_text(f"#!/bin/sh\necho planted reason >> {mine.folder}/log/slurmd.n1.log\nexit 1\n")
    broken.chmod(0o755)
    mine.env = {"PATH": f"{broken.parent}:{os.environ['PATH']}"}
    error = mine.call("up", "-n", "1", code=2)
    assert "node n1 did not come up" in error
    assert "planted reason" in error
    assert not mine.folder.exists()
    assert f"{mine.folder}" not in host_commands()


def test_rootless(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A user with a range of ids starts nodes, shapes links and runs jobs without root."""
    user = next((line.split(":")[0] for line in Path("/etc/subuid").read_text().splitlines() if ":" in line), None)
    python = Path("/usr/bin/python3")
    if os.geteuid() or user is None or not python.exists():
        pytest.skip("needs root to become a user, a user in /etc/subuid, and /usr/bin/python3")
    options = ["--reuid", user, "--regid", user, "--init-groups", "env", "-i", "PATH=/usr/bin:/bin", "HOME=/"]

    def call(*arguments: str) -> str:
        module = [str(python), "-m", "launch.virtual_cluster", "--dir", f"/tmp/xpyd-rootless-{os.getpid()}", *arguments]
        done = subprocess.run(["setpriv", *options, *module], cwd=ROOT, capture_output=True, text=True, timeout=60)
        if "user namespaces are refused" in done.stderr or "missing packages: " in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("up", "-n", "2")
    try:
        assert set(call("run", "srun", "-N2", "hostname").split()) == {"n1", "n2"}
        call("shape", "1gbit", "--pair", "n1", "n2")
        call("kill", "n2")
        assert "off" in call("status")
        call("boot", "n2")
        assert call("exec", "n2", "hostname").strip() == "n2"
    finally:
        call("down")
