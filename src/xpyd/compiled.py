"""The simulator from machine code, where a build of these very sources is at hand; plain Python everywhere else.

``python -m xpyd.compiling`` makes such a build, with mypyc, in a cache folder outside the sources. A build lists every
source that it was made from, with a hash. It is used only where each of them is today what it was, so one that is older
than the sources is never imported. Without a build, or with ``XPYD_NATIVE=0``, the same modules run as Python, to the
same last number.
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from importlib.util import spec_from_file_location
from pathlib import Path
from sysconfig import get_config_var, get_platform
from types import ModuleType

from xpyd.native import OFF

SOURCES = Path(__file__).parents[1]
MANIFEST = "build.json"  # written last: a folder without it is no build
GROUP = "xpyd_simulator"
MODULES = (
    "xpyd.kv.blocks",
    "xpyd.kv.eviction",
    "xpyd.kv.entries",
    "xpyd.kv.prefix",
    "xpyd.scheduler.sequence",
    "xpyd.scheduler.base",
    "xpyd.scheduler.chunked",
    "xpyd.scheduler.decode_only",
    "xpyd.scheduler.prefill_first",
    "xpyd.scheduler.static",
    "xpyd.scheduler.registry",
    "xpyd.simulate.account",
    "xpyd.simulate.agenda",
    "xpyd.simulate.beside",
    "xpyd.simulate.cluster",
    "xpyd.simulate.costs",
    "xpyd.simulate.fast",
    "xpyd.simulate.handoff",
    "xpyd.simulate.instance",
    "xpyd.simulate.links",
    "xpyd.simulate.loads",
    "xpyd.simulate.lowest",
    "xpyd.simulate.lump",
    "xpyd.simulate.outages",
    "xpyd.simulate.pool",
)


def use(cache: Path | None = None, sources: Path = SOURCES) -> bool:
    """Import ``MODULES`` from a build from now on, if one is found; whether they are. Call it before any is imported.

    It is for processes that simulate: what ranks run is not touched.
    """
    if in_use():
        return True
    folder = find_build(cache or cache_folder(), sources)
    if folder is None or any(name in sys.modules for name in MODULES):
        return False
    sys.meta_path.insert(0, _Finder(folder))
    return True


def in_use() -> bool:
    """Whether this process runs the simulator from machine code."""
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


def how() -> str:
    """As tables say it."""
    return "compiled" if in_use() else "plain Python"


def cache_folder() -> Path:
    """Where builds are kept: ``XDG_CACHE_HOME``, or ``~/.cache``."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xpyd" / "compiled"


def find_build(cache: Path, sources: Path = SOURCES) -> Path | None:
    """The newest build of this user for this Python that every source still agrees with; None where there is none."""
    if os.environ.get(OFF) == "0" or not cache.is_dir():
        return None
    for manifest in sorted(cache.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime, reverse=True):
        if _agrees(manifest, sources):
            return manifest.parent
    return None


def runtime() -> str:
    """What machine code depends on: this very Python, on this kind of machine."""
    return f"{sys.implementation.cache_tag} {sys.version} {get_platform()}"


def hashes(sources: Path, modules: Iterable[str] = MODULES) -> dict[str, str]:
    """Every file of this package that the compiler reads for ``modules``, relative to ``sources``, with its hash.

    These are the modules, and all that they import, directly or not: a compiler takes types and constants from there.
    """
    found: dict[str, str] = {}
    todo = [*modules]
    while todo:
        name = todo.pop()
        for path in _files(sources, name):
            relative = str(path.relative_to(sources))
            if relative not in found:
                content = path.read_bytes()
                found[relative] = hashlib.sha256(content).hexdigest()
                todo += _imports(content)
    return dict(sorted(found.items()))


class _Finder(MetaPathFinder):
    """Finds the modules of a build, and the library in which all of them are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._names = {*MODULES, f"{GROUP}__mypyc"}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self._names:
            return None
        file = self._folder / (fullname.replace(".", "/") + get_config_var("EXT_SUFFIX"))
        return spec_from_file_location(fullname, file, loader=ExtensionFileLoader(fullname, str(file)))


def _agrees(manifest: Path, sources: Path) -> bool:
    try:
        if {manifest.stat().st_uid, manifest.parent.stat().st_uid} != {os.getuid()}:
            return False  # machine code that somebody else has put there
        content = json.loads(manifest.read_text())
        if content["runtime"] != runtime():
            return False
        return all(
            hashlib.sha256((sources / name).read_bytes()).hexdigest() == expected
            for name, expected in content["sources"].items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _files(sources: Path, name: str) -> list[Path]:
    """The file of a module, with those of the packages around it; of a name that is none, those of the packages."""
    parts = name.split(".")
    packages = [sources.joinpath(*parts[: i + 1], "__init__.py") for i in range(len(parts))]
    return [path for path in (sources.joinpath(*parts).with_suffix(".py"), *packages) if path.is_file()]


def _imports(content: bytes) -> list[str]:
    """What a source imports of its own package, wherever in it; names of modules, or of what is in them."""
    names: list[str] = []
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return [name for name in names if name.split(".")[0] == "xpyd"]
