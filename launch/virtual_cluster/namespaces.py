"""Commands that enter the cluster's namespaces or make them, and what they need from the machine.

The cluster is one outer set of namespaces (mount, PID, IPC, network; user too without root) around its init: when the
init dies, the kernel ends everything in it. A node is a further set inside (network, UTS, IPC, mount).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from launch.virtual_cluster.spec import NODE_TMPDIR, ClusterError

INSIDE = str(Path(__file__).with_name("inside.py"))
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"
# Program to the Debian package that has it.
PACKAGES = {
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "setsid": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "tc": "iproute2",
    "munged": "munge",
    "slurmctld": "slurm-wlm",
    "slurmd": "slurm-wlm",
    "srun": "slurm-wlm",
    "ldconfig": "libc-bin",
}
PMIX_LIBRARY, PMIX_PACKAGE = "libpmix.so ", "libpmix-dev"  # the bare name, which only the -dev package has


def extend_path() -> None:
    """Daemons and ``ip`` are in sbin, which is not on the PATH of ordinary users."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{SYSTEM_PATH}"


def missing_packages() -> list[str]:
    """Debian packages that must be installed first; empty where all is there."""
    missing = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if os.geteuid() and shutil.which("newuidmap") is None:
        missing.add("uidmap")
    if "libc-bin" not in missing:
        libraries = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True).stdout
        if PMIX_LIBRARY not in libraries:  # Slurm's plug-in loads it by name at run time
            missing.add(PMIX_PACKAGE)
    return sorted(missing)


def user_options() -> list[str]:
    """Options of unshare that stand in for root; empty for root.

    slurmd drops its groups, which the kernel allows only with a range of ids (/etc/subuid, /etc/subgid).
    """
    return [] if os.geteuid() == 0 else ["--user", "--map-root-user", "--map-auto"]


def refusal() -> str | None:
    """Why a cluster cannot be started here, with the remedy; None where it can."""
    if packages := missing_packages():
        return f"missing packages: apt-get install --no-install-recommends {' '.join(packages)}"
    probe = ["unshare", *user_options(), "--mount", "--pid", "--ipc", "--net", "--fork", "--mount-proc", "true"]
    result = subprocess.run(probe, capture_output=True, text=True)
    if result.returncode == 0:
        return None
    reason = result.stderr.strip()
    if os.geteuid() == 0:
        return f"this kernel or container refuses namespaces even to root ({reason}); CAP_SYS_ADMIN is needed"
    return (
        f"not root, and user namespaces are refused ({reason}); run as root, or enable "
        "user namespaces, install uidmap, and give this user a line in /etc/subuid and /etc/subgid"
    )


def unshare_cluster(folder: Path, lock: int) -> list[str]:
    """Start the init of a cluster; ``lock`` is the descriptor that it shall hold."""
    space = ["unshare", *user_options(), "--mount", "--pid", "--ipc", "--net", "--fork", "--kill-child"]
    return [*space, "--", *_inside("cluster", str(folder), str(lock))]


def unshare_node(name: str, folder: Path) -> list[str]:
    """Start a node; run this with :func:`enter_cluster`. The node outlives the command."""
    space = ["unshare", "--net", "--uts", "--ipc", "--mount"]
    return ["setsid", "--fork", *space, "--", *_inside("node", name, str(folder))]


def kill_node(keeper: int) -> list[str]:
    """End all processes of a node; run this with :func:`enter_cluster`."""
    return _inside("kill", str(keeper))


def enter_cluster(init: int, command: Sequence[str]) -> list[str]:
    """Run ``command`` in the outer namespaces, where the switch is. ``init`` is the init's PID on the host."""
    user = [] if os.geteuid() == 0 else ["--user", "--preserve-credentials"]
    return ["nsenter", "--target", str(init), *user, "--mount", "--pid", "--ipc", "--net", "--", *command]


def enter_node(keeper: int, command: Sequence[str], directory: str = "/") -> list[str]:
    """Run ``command`` in a node, in ``directory``, with the node's ``TMPDIR``.

    Nest it in :func:`enter_cluster`, whose end also ends it.
    """
    space = ["nsenter", "--target", str(keeper), "--net", "--uts", "--ipc", "--mount", "--"]
    shell = f'cd "$1" && shift && export TMPDIR={NODE_TMPDIR} && exec setpriv --pdeathsig TERM "$@"'
    return [*space, "sh", "-c", shell, "sh", directory, *command]


def run(command: Sequence[str], stdin: str = "") -> str:
    """The output of a command. Raises ClusterError with what it wrote to stderr."""
    result = subprocess.run(command, input=stdin, capture_output=True, text=True)
    if result.returncode:
        shown = " ".join(command[-6:])
        raise ClusterError(f"command failed with exit code {result.returncode}: ... {shown}\n{result.stderr.strip()}")
    return result.stdout


def _inside(*arguments: str) -> list[str]:
    return [sys.executable, "-I", "-S", INSIDE, *arguments]
