"""Compile the simulator, for where a million requests are simulated: python -m xpyd.compiling

mypyc, of the package mypy, turns the simulator's modules into C and the C compiler makes machine code of it, in two
minutes or so. The sources are copied first: what is compiled is what was hashed, and nothing is written beside them.
``xpyd.compiled`` says when a build is used.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from xpyd.compiled import GROUP, MANIFEST, MODULES, SOURCES, cache_folder, find_build, hashes, runtime
from xpyd.native import OFF

NUM_KEPT = 4  # builds: of other branches, checkouts or Pythons
OPTIMIZATION = "3"
PROGRAM = """
import sys
from mypyc.build import mypycify
from setuptools import setup

group, level, *files = sys.argv[1:]
made = mypycify(["--config-file=", "--ignore-missing-imports", *files], opt_level=level, group_name=group)
arguments = ["--quiet", "build_ext", "--build-lib", "lib", "--build-temp", "temp"]
setup(name=group, packages=[], ext_modules=made, script_args=arguments)
"""
TRIAL = """
import importlib, sys
from pathlib import Path
from xpyd import compiled

made = Path(sys.argv[1])
assert compiled.use(made, made), "the new build is not found"
for name in compiled.MODULES:
    importlib.import_module(name)
"""


class CannotCompile(RuntimeError):
    """A compiler is missing, or refuses the sources; the message says which and what helps."""


def main() -> None:
    cache = cache_folder()
    found = find_build(cache)
    if found is not None:
        print(f"the simulator is compiled already, from these very sources: {found}")
        return
    try:
        print(f"ready: {build(cache)}; every simulation of these sources uses it (XPYD_NATIVE=0: none does)")
    except CannotCompile as error:
        sys.exit(f"not compiled, so the simulator runs as plain Python: {error}")


def build(cache: Path, sources: Path = SOURCES) -> Path:
    """Compile ``MODULES`` of ``sources`` into a folder of ``cache``, and return it. Raises CannotCompile."""
    if find_spec("mypyc") is None or find_spec("setuptools") is None:
        raise CannotCompile("mypy and setuptools are not installed; pip install 'mypy[mypyc]' (the extra: compile)")
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache, prefix=".making-") as made:
        folder = Path(made)
        for name in hashes(sources):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(sources / name, folder / name)
        copied = hashes(folder)  # of what is compiled, whatever happens to the sources meanwhile
        _compile(folder)
        facts = {"runtime": runtime(), "mypy": metadata.version("mypy"), "sources": copied}
        (folder / "lib" / MANIFEST).write_text(json.dumps(facts, indent=1))
        _import_all(folder, sources)
        target = cache / time.strftime(f"%Y%m%d-%H%M%S-{folder.name.rpartition('-')[2]}")
        (folder / "lib").rename(target)
    _drop_old(cache)
    return target


def _compile(folder: Path) -> None:
    files = [name.replace(".", "/") + ".py" for name in MODULES]
    log = folder / "log"
    began_s = time.monotonic()
    with log.open("w") as output:
        command = [sys.executable, "-c", PROGRAM, GROUP, OPTIMIZATION, *files]
        running = subprocess.Popen(command, cwd=folder, stdout=output, stderr=subprocess.STDOUT)
        while running.poll() is None:
            stage = "compiling C" if any(folder.glob("build/*.c")) else "reading types, writing C"
            print(f"\r{len(MODULES)} modules: {stage}, {time.monotonic() - began_s:.0f} s ", end="", flush=True)
            try:
                running.wait(1.0)
            except subprocess.TimeoutExpired:
                continue
    print()
    if running.returncode:
        tail = "\n".join(log.read_text().splitlines()[-12:])
        raise CannotCompile(f"the compiler failed; is there a C compiler and Python's headers?\n{tail}")


def _import_all(folder: Path, sources: Path) -> None:
    """A build that cannot even be imported is never used."""
    environment = {**os.environ, OFF: "1"}
    command = [sys.executable, "-c", TRIAL, str(folder)]
    done = subprocess.run(command, cwd=sources, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CannotCompile(f"what was compiled cannot be imported (exit code {done.returncode})\n{done.stderr}")


def _drop_old(cache: Path) -> None:
    manifests = sorted(cache.glob(f"*/{MANIFEST}"), key=lambda path: path.stat().st_mtime, reverse=True)
    for manifest in manifests[NUM_KEPT:]:
        shutil.rmtree(manifest.parent, ignore_errors=True)


if __name__ == "__main__":
    main()
