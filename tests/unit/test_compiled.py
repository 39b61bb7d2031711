"""Machine code of the simulator: used where it is of these very sources and nowhere else, with the same results."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from xpyd.compiled import MANIFEST, MODULES, SOURCES, find_build, hashes, runtime
from xpyd.compiling import CannotCompile, build

ROOT = Path(__file__).parents[2]
# Rows and sums of every set-up of test_simulate, and of a run without rows; what it prints is compared.
PLAYED = """
import hashlib
from pathlib import Path
from xpyd import compiled
compiled.use(Path({cache!r}))
from tests.unit.test_simulate import CASES, SETUP, draw, hybrid, in_full, play
requests = draw(80, 60.0)
print(compiled.how(), compiled.in_use())
for name, setup in [*CASES.items(), ("hybrid", hybrid(SETUP, requests, 40))]:
    rows, totals = play(setup, requests)
    print(name, hashlib.sha256(repr((list(rows), in_full(totals))).encode()).hexdigest(), in_full(totals)["num_tokens"])
import xpyd.simulate.cluster
print(xpyd.simulate.cluster.__file__)
"""


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what the compiler reads."""
    for name in hashes(SOURCES):
        (tmp_path / "src" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(SOURCES / name, tmp_path / "src" / name)
    return tmp_path / "src"


def plant(cache: Path, sources: Path, **changes: object) -> Path:
    """A build as ``compiling`` leaves it, but for the machine code."""
    folder = cache / "planted"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(json.dumps({"runtime": runtime(), "sources": hashes(sources)} | changes))
    return folder


def test_a_build_is_found_while_its_sources_are_what_they_were(tmp_path: Path, sources: Path) -> None:
    folder = plant(tmp_path / "cache", sources)
    assert find_build(tmp_path / "cache", sources) == folder
    assert find_build(tmp_path / "nothing", sources) is None


@pytest.mark.parametrize("name", ["xpyd/simulate/cluster.py", "xpyd/scheduler/base.py", "xpyd/economics/cost.py"])
def test_a_changed_source_is_not_served_by_the_old_build(tmp_path: Path, sources: Path, name: str) -> None:
    """Of a module that is compiled, and of one that is only imported by those."""
    folder = plant(tmp_path / "cache", sources)
    text = (sources / name).read_text()
    (sources / name).write_text(text + "\n")
    assert find_build(tmp_path / "cache", sources) is None
    (sources / name).write_text(text)
    assert find_build(tmp_path / "cache", sources) == folder
    (sources / name).unlink()
    assert find_build(tmp_path / "cache", sources) is None


def test_a_build_of_another_python_or_one_that_was_not_finished_is_not_used(tmp_path: Path, sources: Path) -> None:
    folder = plant(tmp_path / "cache", sources, runtime="cpython-39")
    assert find_build(tmp_path / "cache", sources) is None
    (folder / MANIFEST).write_text('{"runtime": ')
    assert find_build(tmp_path / "cache", sources) is None
    (folder / MANIFEST).unlink()
    assert find_build(tmp_path / "cache", sources) is None


def test_machine_code_of_another_user_is_not_imported(
    tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path / "cache", sources)
    monkeypatch.setattr("os.getuid", lambda: os.stat(tmp_path).st_uid + 1)
    assert find_build(tmp_path / "cache", sources) is None


def test_machine_code_can_be_switched_off(tmp_path: Path, sources: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(tmp_path / "cache", sources)
    monkeypatch.setenv("XPYD_NATIVE", "0")
    assert find_build(tmp_path / "cache", sources) is None


def test_a_build_knows_of_all_that_its_modules_import() -> None:
    """Found by reading; here by importing them in a fresh process."""
    program = f"import importlib, sys\n[importlib.import_module(name) for name in {MODULES}]\n"
    program += "print([m.__file__ for n, m in sys.modules.items() if n.startswith('xpyd') and m.__file__])"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    loaded = {str(Path(path).relative_to(SOURCES)) for path in ast.literal_eval(done.stdout) if path.endswith(".py")}
    assert loaded <= set(hashes(SOURCES))
    assert {name.replace(".", "/") + ".py" for name in MODULES} <= loaded


def test_without_a_compiler_the_message_says_what_helps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("xpyd.compiling.find_spec", lambda name: None)
    with pytest.raises(CannotCompile, match=r"pip install 'mypy\[mypyc\]'"):
        build(tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


@pytest.mark.long
def test_compiled_and_plain_give_the_same_rows_and_a_changed_source_runs_plain(tmp_path: Path, sources: Path) -> None:
    pytest.importorskip("mypyc", reason="mypyc is not installed")
    if shutil.which("cc") is None and shutil.which("gcc") is None:
        pytest.skip("no C compiler")
    cache = tmp_path / "cache"
    folder = build(cache)
    assert [path.name for path in cache.iterdir()] == [folder.name], "nothing else is left behind"
    compiled, plain = played(cache), played(cache, XPYD_NATIVE="0")
    assert compiled[0] == "compiled True"
    assert Path(compiled[-1]).is_relative_to(folder)
    assert plain[0] == "plain Python False"
    assert plain[-1].endswith("cluster.py")
    assert compiled[1:-1] == plain[1:-1]
    (sources / "xpyd/units.py").write_text((SOURCES / "xpyd/units.py").read_text() + "\n")
    assert find_build(cache) == folder
    assert find_build(cache, sources) is None


def played(cache: Path, **settings: str) -> list[str]:
    program = PLAYED.format(cache=str(cache))
    environment = {**os.environ, "PYTHONPATH": f"{SOURCES}:{ROOT}", **settings}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()
