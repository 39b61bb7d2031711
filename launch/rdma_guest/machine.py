"""One boot of the guest: QEMU around the image, a command inside, its output here, its exit code back.

The exchange folder is shared with the guest, which finds it as /run/xpyd-guest: the command and the shared folders go
in, the exit code comes out. The command's output comes through a virtual serial port, the kernel's goes to a file.
"""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.rdma_guest.image import Image
from launch.rdma_guest.recipe import HERE, GuestError
from launch.rdma_guest.verbs_ucx import environment, link_libraries

QEMU = "qemu-system-x86_64"
EXCHANGE = "/run/xpyd-guest"  # in the guest
CONSOLE_TAIL_LINES = 15
# Without tsc=reliable every look at the clock leaves the emulated processor, and UCX looks often.
KERNEL_ARGUMENTS = "console=ttyS0 panic=-1 loglevel=6 mitigations=off tsc=reliable"


@dataclass(frozen=True)
class Machine:
    """``shares``: folders that the guest may write to, at the same path. Bounded by ``limit_s`` from start to end."""

    image: Image
    shares: Sequence[Path] = ()
    memory_mib: int = 3072
    num_cpus: int = 2
    limit_s: float = 600.0

    def run(self, command: Sequence[str], directory: Path) -> int:
        """The exit code of ``command``, whose output is this process's. Raises GuestError where the guest fails."""
        with tempfile.TemporaryDirectory(prefix="xpyd-guest-") as name:
            exchange = Path(name)
            self._fill(exchange, command, directory)
            console, status = exchange / "console", exchange / "status"
            sys.stdout.flush()
            # QEMU ends with us, however we end; its standard input stays open, as its end would close the port.
            program = ["setpriv", "--pdeathsig", "KILL", *self.qemu(exchange)]
            with subprocess.Popen(program, stdin=subprocess.PIPE) as qemu:
                try:
                    code = qemu.wait(self.limit_s)
                except subprocess.TimeoutExpired:
                    raise GuestError(f"no end within {self.limit_s:.0f} s{_tail(console)}") from None
                finally:
                    qemu.kill()
            if not status.exists():
                raise GuestError(
                    f"the guest ended without running the command; QEMU's exit code is {code}{_tail(console)}"
                )
            return int(status.read_text())

    def qemu(self, exchange: Path) -> list[str]:
        """The command line of QEMU. Emulated (tcg): a nested KVM is missing, or broken, where this is needed most."""
        shares = {"root": (Path("/"), ",readonly=on"), "exchange": (exchange, "")}
        shares |= {_tag(number): (folder, "") for number, folder in enumerate(self.shares)}
        options = [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-machine", "q35"]
        options += ["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", str(self.num_cpus), "-m", str(self.memory_mib)]
        options += ["-kernel", str(self.image.kernel), "-initrd", str(self.image.initramfs)]
        options += ["-append", KERNEL_ARGUMENTS]
        options += ["-chardev", f"file,id=console,path={exchange / 'console'}", "-serial", "chardev:console"]
        options += ["-device", "virtio-serial-pci", "-chardev", "stdio,id=output,signal=off"]
        options += ["-device", "virtserialport,chardev=output,nr=1"]
        for tag, (folder, more) in shares.items():
            path = str(folder).replace(",", ",,")  # QEMU's quoting
            options += ["-virtfs", f"local,path={path},mount_tag={tag},security_model=none,multidevs=remap{more}"]
        return options

    def _fill(self, exchange: Path, command: Sequence[str], directory: Path) -> None:
        link_libraries(exchange / "ucx")
        variables = {"PATH": f"{sys.prefix}/bin:$PATH", "OMP_NUM_THREADS": "1", **environment(f"{EXCHANGE}/ucx")}
        (exchange / "command").write_text(script(command, directory, variables))
        shares = "".join(f"{_tag(number)} {folder}\n" for number, folder in enumerate(self.shares))
        (exchange / "shares").write_text(shares)
        shutil.copy(HERE / "inside.sh", exchange)


def script(command: Sequence[str], directory: Path, variables: Mapping[str, str]) -> str:
    """What the guest's shell runs; values may refer to variables that the guest has."""
    exports = "".join(f'export {name}="{value}"\n' for name, value in variables.items())
    return f"{exports}cd {shlex.quote(str(directory))} && exec {shlex.join(command)}\n"


def _tag(number: int) -> str:
    return f"share{number}"


def _tail(console: Path) -> str:
    lines = console.read_text(errors="replace").splitlines() if console.exists() else []
    return "".join(f"\n  {line}" for line in ["; the end of its console:", *lines[-CONSOLE_TAIL_LINES:]] if lines)
