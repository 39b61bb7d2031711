"""What runs inside the namespaces; stands alone (``python -I -S inside.py VERB ...``), as nodes start in milliseconds.

``cluster FOLDER FD`` init of the whole cluster: holds the lock, reaps, and ends when the front that started it is gone
``node NAME FOLDER``  sets a node up, then holds its namespaces
``kill PID``          ends every process in the network namespace of PID
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
from contextlib import suppress

DETACH = b"d"  # on the lifeline: the front may go, the cluster stays
READY = "ready"
KEEPER = "sleep"


def cluster(folder: str, lock: str) -> int:
    """Be process 1. The lifeline is stdin: its end without DETACH is ours, however the front died (even kill -9).

    ``lock`` is the descriptor of the folder's lock, taken by the front; it stays locked as long as we live.
    """
    os.set_inheritable(int(lock), False)
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    host_pid = os.readlink("/proc/self")  # /proc is still the host's
    mount("-t", "proc", "proc", "/proc")
    with open(f"{folder}/pid", "w") as file:
        file.write(host_pid)
    print(READY, flush=True)
    reap_forever()
    return 0


def reap_forever() -> None:
    wake_read, wake_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    watched = [0, wake_read]
    while True:
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        ready, _, _ = select.select(watched, [], [])
        if wake_read in ready:
            os.read(wake_read, 4096)
        if 0 in ready:
            if os.read(0, 1) != DETACH:
                return
            watched.remove(0)


def node(name: str, folder: str) -> int:
    """Name, /run, /dev/shm, /etc/hosts, /etc/slurm, /sys of a node, then a keeper that holds its namespaces."""
    socket.sethostname(name)
    for path, mode in (("/run", "755"), ("/dev/shm", "1777")):
        mount("-t", "tmpfs", "-o", f"mode={mode}", "xpyd", path)
    for path in ("/run/munge", "/run/slurm/spool", "/run/slurm/tmp", "/run/xpyd/tmp"):
        os.makedirs(path)
    os.symlink(folder, "/run/xpyd/cluster")
    mount("--bind", f"{folder}/hosts", "/etc/hosts")
    mount("--bind", f"{folder}/etc", "/etc/slurm")
    mount("-t", "sysfs", "sysfs", "/sys")  # a mount belongs to a network namespace: /sys/class/net shows the node's
    for scope in ("all", "default"):
        with suppress(OSError), open(f"/proc/sys/net/ipv6/conf/{scope}/disable_ipv6", "w") as file:
            file.write("1")  # router solicitations would count as traffic
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    pid_file = f"{folder}/nodes/{name}"
    with open(f"{pid_file}.new", "w") as file:
        file.write(str(os.getpid()))
    os.rename(f"{pid_file}.new", pid_file)
    print(READY, flush=True)
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.execvp(KEEPER, [KEEPER, "infinity"])


def kill(pid: str) -> int:
    """SIGKILL every process that shares the network namespace of ``pid``, until none is left."""
    network = os.readlink(f"/proc/{pid}/ns/net")
    while victims := [int(entry) for entry in os.listdir("/proc") if entry.isdigit() and shares(entry, network)]:
        for victim in victims:
            with suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    return 0


def shares(pid: str, network: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/ns/net") == network  # fails for a zombie, which is dead enough
    except OSError:
        return False


def mount(*arguments: str) -> None:
    subprocess.run(["mount", *arguments], check=True)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["cluster", folder, lock]:
            sys.exit(cluster(folder, lock))
        case ["node", name, folder]:
            sys.exit(node(name, folder))
        case ["kill", pid]:
            sys.exit(kill(pid))
        case _:
            sys.exit(__doc__)
