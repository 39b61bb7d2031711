"""A machine with verbs where there is none: a small guest, emulated by QEMU, with two Soft-RoCE ports on one wire.

python -m launch.rdma_guest build
python -m launch.rdma_guest run ibv_devinfo
python -m launch.rdma_guest run --share runs python -m experiments.serve fabric=ib ... run.root=$PWD/runs

The guest sees this machine's files read-only, so that the Python and the checkout there are those here; what it writes
is gone at the end, but for the folders given with --share. Nothing that is timed there says anything about speed.
"""

from __future__ import annotations

import argparse
import os
import platform
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from launch.rdma_guest.image import Image, build
from launch.rdma_guest.machine import QEMU, Machine
from launch.rdma_guest.recipe import GuestError, Recipe, cache_root

USER_ERROR = 2
# Program to the Debian package that has it.
PACKAGES = {
    QEMU: "qemu-system-x86",
    "apt-get": "apt",
    "dpkg-deb": "dpkg",
    "setpriv": "util-linux",
    "ip": "iproute2",
    "rdma": "iproute2",
}
SYSTEM_PATH = "/usr/local/sbin:/usr/sbin:/sbin"


def main(arguments: Sequence[str]) -> int:
    """The exit code of the command; 2 where there can be no guest, with the reason on stderr."""
    options = parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, _unwind)
    try:
        if reason := refusal():
            raise GuestError(reason)
        image = _build(rebuild=options.verb == "build" and options.anew)
        return run(options, image) if options.verb == "run" else 0
    except GuestError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m launch.rdma_guest",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = made.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    builder = verbs.add_parser("build", help="make the image, unless it is there")
    builder.add_argument("--anew", action="store_true", help="also if it is there, for a newer kernel")
    runner = verbs.add_parser("run", help="boot, run a command in this directory, power off")
    runner.add_argument("--share", type=Path, action="append", default=[], help="a folder that the guest may write to")
    runner.add_argument("--limit", type=float, default=600.0, metavar="S", help="seconds in all (%(default)s)")
    runner.add_argument("command", nargs=argparse.REMAINDER)
    return made


def run(options: argparse.Namespace, image: Image) -> int:
    if not options.command:
        raise GuestError("run: no command given")
    for folder in options.share:
        folder.mkdir(parents=True, exist_ok=True)
    shares = [folder.resolve() for folder in options.share]
    return Machine(image, shares, limit_s=options.limit).run(options.command, Path.cwd())


def refusal() -> str | None:
    """Why there can be no guest here, with the remedy; None where there can."""
    os.environ["PATH"] = f"{os.environ.get('PATH', '/usr/bin:/bin')}:{SYSTEM_PATH}"  # of ordinary users, too
    if platform.machine() != "x86_64":
        return f"the guest is an x86_64 machine that runs this machine's programs; this one is {platform.machine()}"
    missing = {package for program, package in PACKAGES.items() if shutil.which(program) is None}
    if missing:
        return f"missing packages: apt-get install --no-install-recommends {' '.join(sorted(missing))}"
    return None


def _build(rebuild: bool) -> Image:
    begin = time.monotonic()
    if rebuild:
        shutil.rmtree(cache_root(), ignore_errors=True)
    image = build(Recipe(), cache_root())
    print(f"image {image.folder}, {time.monotonic() - begin:.1f} s", file=sys.stderr)
    return image


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
