"""Kernel modules in the order in which they must be loaded, as each module's own file tells what it needs."""

from __future__ import annotations

import lzma
import re
from collections.abc import Sequence
from pathlib import Path

from launch.rdma_guest.recipe import GuestError

DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")  # in the section .modinfo


def load_order(folder: Path, wanted: Sequence[str]) -> dict[str, bytes]:
    """Name to content of ``wanted`` and all that they need, from the .ko files below ``folder``, in order of loading.

    Raises GuestError for a module that is not there.
    """
    files = {_name(path): path for path in folder.rglob("*.ko*")}
    found: dict[str, bytes] = {}
    for name in wanted:
        _add(name.replace("-", "_"), files, found)
    return found


def _add(name: str, files: dict[str, Path], found: dict[str, bytes]) -> None:
    if name in found:
        return
    if name not in files:
        raise GuestError(f"this kernel has no module {name}; its package may keep it in another one")
    content = _read(files[name])
    needs = DEPENDS.search(content)
    for needed in needs[1].decode().split(",") if needs and needs[1] else ():
        _add(needed.replace("-", "_"), files, found)
    found[name] = content


def _name(path: Path) -> str:
    return path.name.split(".")[0].replace("-", "_")


def _read(path: Path) -> bytes:
    content = path.read_bytes()
    return lzma.decompress(content) if path.suffix == ".xz" else content
