"""Birth and death of a cluster: its folder, its init, and the lifeline that ties it to the front that started it."""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from launch.virtual_cluster import namespaces
from launch.virtual_cluster.cluster import Cluster
from launch.virtual_cluster.inside import DETACH, READY
from launch.virtual_cluster.slurm_conf import config_files
from launch.virtual_cluster.spec import ClusterError, ClusterSpec

END_TIMEOUT_S = 15.0
POLL_S = 0.01
MUNGE_KEY_BYTES = 128


class Front:
    """The process that started a cluster. While it holds the lifeline, its death, of any kind, ends the cluster."""

    def __init__(self, spec: ClusterSpec) -> None:
        """Make the folder and start the init. Raises ClusterError."""
        self.spec = spec
        with _new_folder(spec) as lock, spec.log("init").open("w") as log:
            self._process = subprocess.Popen(
                namespaces.unshare_cluster(spec.folder, lock),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                pass_fds=[lock],
                start_new_session=True,  # Ctrl-C is for the front, which then ends the cluster in order
            )
        assert self._process.stdout is not None
        if self._process.stdout.readline().decode().strip() != READY:
            self.end()
            raise ClusterError(f"the cluster's init did not start: {spec.log('init').read_text().strip()}")

    def cluster(self) -> Cluster:
        return open_cluster(self.spec.folder)

    def detach(self) -> None:
        """Let the cluster live on without us, until ``down``."""
        assert self._process.stdin is not None
        self._process.stdin.write(DETACH)
        self._process.stdin.close()

    def wait(self) -> int:
        """Until the cluster ends by itself (``down`` from elsewhere)."""
        return self._process.wait()

    def end(self) -> None:
        """End everything and remove the folder."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()  # --kill-child takes the init along
            self._process.wait()
        shutil.rmtree(self.spec.folder, ignore_errors=True)


@contextmanager
def _new_folder(spec: ClusterSpec) -> Iterator[int]:
    """A folder with all files, and the descriptor of its lock. A dead cluster's folder is reused."""
    folder = spec.folder
    ours = folder.joinpath("cluster.json").exists()
    if folder.exists() and not ours and any(folder.iterdir()):
        raise ClusterError(f"folder {folder} exists and holds no cluster; name another with --dir")
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if not _try_lock(lock):
            raise ClusterError(
                f"folder in use: a cluster runs in {folder}; end it with down, or name another with --dir"
            )
        folder.chmod(0o711)  # munge wants its key's path closed to others' writing, and open for passing through
        for name in ("etc", "nodes", "log", "state"):
            shutil.rmtree(folder / name, ignore_errors=True)
            (folder / name).mkdir()
        spec.save()
        for name, text in config_files(spec).items():
            (folder / name).write_text(text)
        key = folder / "munge.key"
        key.unlink(missing_ok=True)
        key.touch(0o600)
        key.write_bytes(os.urandom(MUNGE_KEY_BYTES))
        yield lock
    finally:
        os.close(lock)


def open_cluster(folder: Path) -> Cluster:
    """The cluster that runs in ``folder``. Raises ClusterError where none does."""
    spec = ClusterSpec.load(folder)
    init = running_init(folder)
    if init is None:
        raise ClusterError(
            f"the cluster in {folder} has ended; remove what it left with down, or start it again with up"
        )
    return Cluster(spec, init)


def running_init(folder: Path) -> int | None:
    """The PID on this host of the init whose cluster holds the folder's lock; None where no cluster runs."""
    lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        if _try_lock(lock):
            return None
        return int((folder / "pid").read_text())
    except FileNotFoundError:
        raise ClusterError(f"the cluster in {folder} is only starting; try again") from None
    finally:
        os.close(lock)


def down(folder: Path) -> None:
    """End the cluster in ``folder``, dead or alive, and remove the folder. Raises ClusterError where there is none."""
    ClusterSpec.load(folder)
    init = running_init(folder)
    if init is not None:
        _kill_and_wait(init)
    _wait_unlocked(folder)
    shutil.rmtree(folder)


def _kill_and_wait(pid: int) -> None:
    """SIGKILL the init, and wait until it is gone: the kernel ends its whole PID namespace before that."""
    with suppress(ProcessLookupError):
        handle = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(handle, signal.SIGKILL)
            if not select.select([handle], [], [], END_TIMEOUT_S)[0]:
                raise ClusterError(f"init (PID {pid}) did not end within {END_TIMEOUT_S} s of SIGKILL")
        finally:
            os.close(handle)


def _wait_unlocked(folder: Path) -> None:
    """Until the parent of the init, the last holder of the lock, is gone too."""
    lock = os.open(folder / "lock", os.O_RDWR)
    try:
        deadline = time.monotonic() + END_TIMEOUT_S
        while not _try_lock(lock):
            if time.monotonic() > deadline:
                raise ClusterError(f"something still holds {folder}/lock after {END_TIMEOUT_S} s")
            time.sleep(POLL_S)
    finally:
        os.close(lock)


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except BlockingIOError:
        return False
