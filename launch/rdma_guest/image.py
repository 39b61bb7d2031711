"""Makes the image: downloads the packages with apt-get, unpacks them, and packs what the guest needs of them.

Nothing is installed on this machine, and nothing needs root.
"""

from __future__ import annotations

import fcntl
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from launch.rdma_guest.cpio import archive
from launch.rdma_guest.modules import load_order
from launch.rdma_guest.recipe import GuestError, Recipe

DOWNLOAD_TIMEOUT_S = 240
# Of the packages, what is laid over this machine's root in the guest.
USERLAND = (
    "etc/libibverbs.d/rxe.driver",
    "usr/bin/ibv_*",
    "**/libibverbs.so*",
    "**/libibverbs/librxe-*",
    "**/libnl-*.so*",
)
PACKAGE_OF_KERNEL = re.compile(r"^\s*Depends: (linux-image-\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Image:
    """The files that QEMU boots."""

    folder: Path

    @property
    def kernel(self) -> Path:
        return self.folder / "vmlinuz"

    @property
    def initramfs(self) -> Path:
        return self.folder / "initramfs"

    @property
    def complete(self) -> bool:
        return self.kernel.exists() and self.initramfs.exists()


def build(recipe: Recipe, cache: Path) -> Image:
    """The image of ``recipe``: the kept one where there is one, else made anew, which replaces older ones.

    Raises GuestError where a package is not to be had.
    """
    image = Image(cache / recipe.digest())
    if image.complete:
        return image
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(cache):
        if not image.complete:  # another process may have made it meanwhile
            _make(recipe, cache, image)
    return image


def _make(recipe: Recipe, cache: Path, image: Image) -> None:
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        packages, unpacked, root = (Path(scratch, name) for name in ("packages", "unpacked", "root"))
        for folder in (packages, unpacked, root, done := Path(scratch, "done")):
            folder.mkdir()
        _download((_kernel_package(recipe.kernel), *recipe.packages), packages)
        for package in sorted(packages.glob("*.deb")):
            _call(["dpkg-deb", "-x", str(package), str(unpacked)])
        _lay_out(unpacked, root, recipe)
        made = Image(done)
        shutil.copy(_one(unpacked, "boot/vmlinuz-*"), made.kernel)
        made.initramfs.write_bytes(archive(root))
        for old in cache.iterdir():
            if old.is_dir() and old != Path(scratch):
                shutil.rmtree(old)
        done.rename(image.folder)


def _lay_out(unpacked: Path, root: Path, recipe: Recipe) -> None:
    """The initramfs: init, busybox, modules with their order, and rdma-core as a layer over this machine's root."""
    (root / "bin").mkdir()
    shutil.copy(_one(unpacked, "**/bin/busybox"), root / "bin")
    (root / "init").write_text(recipe.init)
    (root / "init").chmod(0o755)
    order = load_order(_one(unpacked, "**/lib/modules"), recipe.modules)
    (root / "modules").mkdir()
    for name, content in order.items():
        (root / "modules" / name).write_bytes(content)
    (root / "modules" / "order").write_text("".join(f"{name}\n" for name in order))
    for pattern in USERLAND:
        _one(unpacked, pattern)
        for path in unpacked.glob(pattern):
            place = path.relative_to(unpacked)
            # A folder `lib` would hide this machine's link from lib to usr/lib.
            target = root / "userland" / ("usr" if place.parts[0] == "lib" else "") / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, target, follow_symlinks=False)


def _one(folder: Path, pattern: str) -> Path:
    """The first match. Raises GuestError where a package no longer has it."""
    for path in sorted(folder.glob(pattern)):
        return path
    raise GuestError(f"the packages have no {pattern}; was it moved to another one? See launch/rdma_guest/recipe.py")


def _kernel_package(depending: str) -> str:
    found = PACKAGE_OF_KERNEL.search(_call(["apt-cache", "depends", depending]))
    if found is None:
        raise GuestError(f"no kernel package behind {depending}: run apt-get update; is this Debian?")
    return found[1]


def _download(packages: Sequence[str], folder: Path) -> None:
    command = ["apt-get", "-o", "APT::Sandbox::User=root", "download", *packages]
    try:
        _call(command, folder)
    except GuestError as error:
        raise GuestError(f"{error}; run apt-get update first") from error


def _call(command: Sequence[str], folder: Path | None = None) -> str:
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise GuestError(f"{' '.join(command)}: no end within {DOWNLOAD_TIMEOUT_S} s") from None
    if done.returncode:
        raise GuestError(f"{' '.join(command)}: exit code {done.returncode}: {done.stderr.strip()}")
    return done.stdout


@contextmanager
def _alone(cache: Path) -> Iterator[None]:
    with (cache / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
