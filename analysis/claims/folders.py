"""Where the runs of claims are: in the folder of a claims run, which names its measurements, or given one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

from analysis.claims.claim import Claim, Unmeasurable
from analysis.claims.registry import measurements
from analysis.load import Run, RunError, load_run, pooled, read_config

EXPERIMENT, MANIFEST = "claims", "measurements.json"
NOT_MEASURED = "not measured"


class Known(dict[str, Run]):
    """Runs by the name of their measurement; one that is not there is Unmeasurable, with the reason."""

    def __init__(self, runs: Mapping[str, Run], failed: Mapping[str, str]) -> None:
        super().__init__(runs)
        self.failed = failed

    def __missing__(self, name: str) -> Run:
        raise Unmeasurable(f"measurement {name}: {self.failed.get(name, NOT_MEASURED)}")


@dataclass(frozen=True)
class Given:
    """What the folders on the command line hold; ``only``: the claims that a claims run was asked for (empty: all)."""

    runs: Known
    only: tuple[str, ...] = ()


def read(folders: Sequence[Path], known: Sequence[Claim], allow_partial: bool = False) -> Given:
    """Runs of the folders of claims runs, and run folders of single experiments. Raises RunError, see ``load_run``."""
    runs: dict[str, Run] = {}
    failed: dict[str, str] = {}
    only: list[str] = []
    for folder in folders:
        config = read_config(folder)
        if config.get("experiment") == EXPERIMENT:
            only += [name for name in config.get("claims", {}).get("only", []) if name not in only]
            for entry in _manifest(folder):
                _take(entry, folder, runs, failed, allow_partial)
        else:
            _assign(load_run(folder, allow_partial), known, runs)
    return Given(Known(runs, failed), tuple(only))


def is_claims_run(folder: Path) -> bool:
    return read_config(folder).get("experiment") == EXPERIMENT


def _manifest(folder: Path) -> list[dict[str, Any]]:
    path = folder / MANIFEST
    if not path.is_file():
        raise RunError(f"{folder}: nothing was measured yet (no {MANIFEST}); let experiments.claims run on it")
    try:
        entries = json.loads(path.read_text())["measurements"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: damaged ({type(error).__name__}); restore it or measure again") from None
    assert isinstance(entries, list)
    return entries


def _take(
    entry: Mapping[str, Any], folder: Path, runs: dict[str, Run], failed: dict[str, str], allow_partial: bool
) -> None:
    """One measurement of a claims run: its run, or why there is none."""
    name, own = str(entry["name"]), folder / entry["folder"]
    if entry["error"] and not (allow_partial and (own / "config.yaml").exists()):
        failed[name] = str(entry["error"])
        return
    try:
        _add(name, load_run(own, allow_partial), runs)
    except RunError as error:
        failed[name] = str(error)


def _assign(run: Run, known: Sequence[Claim], runs: dict[str, Run]) -> None:
    """A single run folder, to every measurement that it may be. Raises RunError where it is none."""
    names = [each.name for each in measurements(known) if each.is_of(run)]
    if not names:
        wanted = ", ".join(dict.fromkeys(each.experiment for each in measurements(known)))
        raise RunError(
            f"{run.paths[0]}: no claim reads this run of {run.experiment}; claims read {wanted}, with settings of "
            "their own: python -m experiments.claims measures them"
        )
    for name in names:
        _add(name, run, runs)


def _add(name: str, run: Run, runs: dict[str, Run]) -> None:
    """Several runs of one measurement count as repeats."""
    runs[name] = reduce(pooled, [runs[name], run]) if name in runs else run
