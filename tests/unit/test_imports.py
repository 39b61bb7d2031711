"""Imports point down: the floor table of the design, enforced on the source of every module."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# The longest matching prefix gives a module its floor; a module imports only from floors below, or its own package.
FLOORS = {
    "xpyd.units": 0,
    "xpyd.request": 0,
    "xpyd.order": 0,
    "xpyd.placement": 0,
    "xpyd.mpi": 0,
    "xpyd.model.shapes": 0,
    "xpyd.model.shard": 1,
    "xpyd.model.spec": 0,
    "xpyd.native": 0,
    "xpyd.compiled": 1,
    "xpyd.compiling": 2,
    "xpyd.records": 1,
    "xpyd.metrics": 1,
    "xpyd.faults": 1,
    "xpyd.clock": 1,
    "xpyd.kv.blocks": 0,
    "xpyd.kv.eviction": 0,
    "xpyd.kv.entries": 1,
    "xpyd.kv.prefix": 1,
    "xpyd.workload": 1,
    "xpyd.economics": 1,
    "xpyd.economics.sweep": 2,
    "xpyd.kv": 2,
    "xpyd.scheduler": 2,
    "xpyd.router": 2,
    "xpyd.hybrid": 2,
    "xpyd.dispatch": 3,
    "xpyd.lock": 1,
    "xpyd.streams": 1,
    "xpyd.schema_history": 0,
    "xpyd.slurm": 2,
    "xpyd.run_dir": 2,
    "xpyd.environment": 2,
    "xpyd.transport.counters": 1,
    "xpyd.transport": 3,
    "xpyd.model": 3,
    "xpyd.worker": 4,
    "xpyd.preflight.options": 1,
    "xpyd.preflight": 5,
    "xpyd.simulate": 4,
    "xpyd.simulation": 6,
    "xpyd.calibration": 6,
    "xpyd.calibration_points": 2,
    "xpyd.parity": 4,
    "xpyd.score": 2,
    "xpyd.saturation_search": 4,
    "xpyd.plan_search": 4,
    "xpyd.break_even_grid": 4,
    "xpyd.codec_terms": 5,
    "xpyd.planning": 6,
    "xpyd.break_even": 6,
    "xpyd.saturation": 6,
    "xpyd.rate_sweep": 6,
    "xpyd.plan_file": 6,
    "xpyd.regret": 6,
    "xpyd.rival": 4,
    "xpyd.colocated_search": 4,
    "xpyd.claims_choice": 1,
    "xpyd.config": 5,
    "xpyd.overrides": 6,
    "xpyd.compose": 6,
    "xpyd.launcher": 6,
    "xpyd.resume": 6,
    "xpyd.submit": 6,
    "xpyd.follow": 6,
    "xpyd.entry": 6,
    "xpyd.trial": 6,
    "xpyd.probes": 6,
    "xpyd.tuning": 6,
    "xpyd.colocated_tuning": 6,
    "xpyd.handoffs": 6,
    "xpyd.kv_caches": 6,
    "xpyd.claims": 6,
    "experiments": 7,
    "analysis": 7,
}
ANALYSIS_MAY_IMPORT = (
    "xpyd.records",
    "xpyd.metrics",
    "xpyd.units",
    "xpyd.request",
    "xpyd.economics",
    "xpyd.streams",
    "xpyd.schema_history",
    "analysis",
)
# A library stays in the places that need it.
ONLY_IN = {
    "hydra": ("xpyd.compose",),
    "pandas": ("analysis",),
    "torch": ("xpyd.kv.arenas", "xpyd.kv.cache", "xpyd.kv.codec", "xpyd.model"),
    "mpi4py": ("xpyd.mpi",),
    "ucxx": ("xpyd.transport.ucx_binding",),
    "ucp": ("xpyd.transport.ucx_binding",),
    "libucx": ("xpyd.mpi",),
    "nixl": ("xpyd.transport.nixl",),
    "nixl_cu12": ("xpyd.transport.nixl",),
}


def modules() -> dict[str, Path]:
    found = {}
    for base, folder in (
        ("xpyd", ROOT / "src/xpyd"),
        ("experiments", ROOT / "experiments"),
        ("analysis", ROOT / "analysis"),
    ):
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            name = ".".join((base, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


def floor_of(name: str) -> int | None:
    best = max((prefix for prefix in FLOORS if within(name, prefix)), key=len, default=None)
    return None if best is None else FLOORS[best]


def within(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def imported(path: Path, known: dict[str, Path]) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if inner in known else node.module)
    return names


KNOWN = modules()


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_imports_point_down(name: str) -> None:
    mine = floor_of(name)
    assert mine is not None or name == "xpyd", f"{name} has no floor in the table: add it"
    for other in imported(KNOWN[name], KNOWN):
        if not other.startswith(("xpyd.", "experiments", "analysis")):
            continue
        if within(name, "analysis"):
            assert any(within(other, allowed) for allowed in ANALYSIS_MAY_IMPORT), f"{name} imports {other}"
            continue
        assert not within(other, "analysis"), f"{name} imports {other}"
        theirs = floor_of(other)
        assert theirs is not None, f"{other} has no floor"
        same_package = name.rsplit(".", 1)[0] == other.rsplit(".", 1)[0]
        assert theirs < mine or (theirs == mine and same_package), (
            f"{name} (floor {mine}) imports {other} (floor {theirs})"
        )


@pytest.mark.parametrize("name", sorted(KNOWN))
def test_libraries_stay_in_their_places(name: str) -> None:
    for other in imported(KNOWN[name], KNOWN):
        allowed = ONLY_IN.get(other.split(".")[0])
        if allowed is not None:
            assert any(within(name, place) for place in allowed), f"{name} imports {other}; only {allowed} may"


def test_the_command_line_starts_without_heavy_libraries() -> None:
    """``--help``, a dry run and the front of a sweep import neither torch nor MPI: that takes seconds each time."""
    experiments = [path.stem for path in sorted((ROOT / "experiments").glob("*.py")) if path.stem != "__init__"]
    program = (
        f"import importlib, sys; [importlib.import_module('experiments.' + name) for name in {experiments}]; "
        "print(sorted({'torch', 'pandas', 'matplotlib', 'mpi4py', 'hydra'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr
