"""Run folders as DataFrames: whole, partial or pooled, and nothing read silently that should not be.

A run folder holds ``config.yaml``, ``environment.json``, ``predicted.json``, the tables of ``xpyd.records`` and, last,
``DONE``. Without DONE the run is partial: its tables are Arrow streams, readable up to the last whole batch, maybe of
several attempts (see ``xpyd.streams``).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from xpyd.records import PREDICTED, TABLES
from xpyd.streams import StreamError, in_this_version, merge

# Runs that differ in these only are repeats of one trial: where results go, how ranks start, how long, which seed.
REPEAT_KEYS = ("run", "launch", "num_pairs", "num_blocks", "workload.seed")
# Facts of the environment that make two runs different measurements, though their configs agree.
COMPARED_FACTS = ("commit", "mpi", "labels", "versions")
UNKNOWN_MACHINE = "unknown machine"  # the label of a run without environment.json: it may be emulated, shared or a CPU


class RunError(ValueError):
    """Input that cannot be read as asked; the message names the folder and the remedy."""


@dataclass(frozen=True)
class Run:
    """One run folder, or several pooled ones. ``tables`` has every table of ``xpyd.records``, empty where not written.

    ``predicted`` maps length class -> arm -> ArmTimes fields; empty where nothing was predicted.
    """

    paths: tuple[Path, ...]
    config: dict[str, Any]
    environment: dict[str, Any]
    predicted: dict[str, dict[str, dict[str, float]]]
    tables: dict[str, pd.DataFrame]
    partial: bool

    @property
    def experiment(self) -> str:
        return str(self.config["experiment"])

    @property
    def labels(self) -> list[str]:
        """What every table of this run carries in its title, such as ``shared node`` or ``partial run``."""
        closed_form = self.experiment == "economics"  # of no machine
        labels = list(self.environment.get("labels", [] if closed_form else [UNKNOWN_MACHINE]))
        if closed_form:
            labels.append("modeled")
        return [*labels, *(["partial run"] if self.partial else [])]

    @property
    def name(self) -> str:
        first = self.paths[0]
        more = f" + {len(self.paths) - 1} more" if len(self.paths) > 1 else ""
        return f"{first.parent.name}/{first.name}{more}"


def load_run(path: Path | str, allow_partial: bool = False) -> Run:
    """Read one run folder.

    Raises RunError for a missing folder, one that is no run, a damaged file, one of a later version, or a run without
    DONE unless ``allow_partial``.
    """
    folder = Path(path).resolve()
    if not folder.is_dir():
        raise RunError(f"{path}: no such folder; give the path of a run, such as runs/compare/20260101-120000-000000")
    _check_is_run(folder)
    partial = not (folder / "DONE").is_file()
    if partial and not allow_partial:
        raise RunError(
            f"{folder}: partial run (no DONE: it was stopped, or still runs); pass --allow-partial to read what was "
            "measured until then"
        )
    config = read_config(folder)
    tables = {table: _read_table(folder, table, partial) for table in TABLES}
    predicted = read_predicted(folder).get("classes", {})
    return Run((folder,), config, _read_json(folder / "environment.json"), predicted, tables, partial)


def read_predicted(folder: Path) -> dict[str, Any]:
    """What a run froze before its first request; empty where it predicted nothing. Raises RunError where damaged."""
    return _read_json(folder / PREDICTED)


def load_runs(paths: Sequence[Path | str], allow_partial: bool = False, allow_mixed: bool = False) -> list[Run]:
    """Read run folders; repeats of one trial are pooled to one Run, more pairs for the same comparison.

    Raises RunError, see ``load_run``, and where runs differ in anything that matters unless ``allow_mixed``, which
    returns one Run per kind.
    """
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise RunError("the same run folder is given twice; its blocks would count twice, give each folder once")
    groups: list[list[Run]] = []
    for run in (load_run(path, allow_partial) for path in paths):
        group = next((g for g in groups if not differences(g[0], run)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    if len(groups) > 1 and not allow_mixed:
        first, other = groups[0][0], groups[1][0]
        shown = "; ".join(f"{key}: {a!r} and {b!r}" for key, (a, b) in list(differences(first, other).items())[:6])
        raise RunError(
            f"{other.paths[0]}: differs from {first.paths[0]} ({shown}); give runs of one configuration, or pass "
            "--allow-mixed for one table each"
        )
    return [reduce(pooled, group) for group in groups]


def differences(first: Run, second: Run) -> dict[str, tuple[Any, Any]]:
    """Config keys and environment facts in which two runs are not repeats of one trial, with both values."""
    ours, theirs = dict(_facts(first)), dict(_facts(second))
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    return {key: (ours.get(key), theirs.get(key)) for key in keys}


def _facts(run: Run) -> Iterator[tuple[str, Any]]:
    for key, value in flat_config(run.config):
        if not any(key == repeat or key.startswith(repeat + ".") for repeat in REPEAT_KEYS):
            yield key, value
    for fact in COMPARED_FACTS:
        yield f"environment.{fact}", run.environment.get(fact)
    yield "environment.machines", machines_of(run)
    yield "environment.routes", sorted(set(run.environment.get("routes", {}).values()))


def machines_of(run: Run) -> list[str]:
    """The kinds of nodes that a run had, such as ``64 x AMD EPYC 7763``."""
    machines = run.environment.get("machines", {}).values()
    return sorted({f"{machine.get('num_cores')} x {machine.get('cpu')}" for machine in machines})


def flat_config(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting as (dotted key, value)."""
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat_config(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def setting(run: Run, key: str) -> Any:
    """A setting of a run by its dotted key; None where there is none."""
    found: Any = run.config
    for part in key.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found


def pooled(first: Run, second: Run) -> Run:
    """Both runs as one: the second's blocks and pairs are renumbered to follow the first's."""
    tables = {}
    for table, ours in first.tables.items():
        theirs = second.tables[table].copy()
        for key in ("block", "pair"):
            if key in theirs.columns:
                theirs[key] += _next_number(first, key)
        tables[table] = pd.concat([ours, theirs], ignore_index=True) if len(ours) else theirs
    return replace(
        first,
        paths=first.paths + second.paths,
        tables=tables,
        predicted=_mean_prediction(first, second),
        partial=first.partial or second.partial,
    )


def _next_number(run: Run, key: str) -> int:
    numbers = run.tables["requests"][key]
    return int(numbers.max()) + 1 if len(numbers) else 0


def _mean_prediction(first: Run, second: Run) -> dict[str, dict[str, dict[str, float]]]:
    """The mean of both predictions, each weighted by the runs behind it, in the classes that both know."""
    n, m = len(first.paths), len(second.paths)
    return {
        length: {
            arm: {line: (n * ours + m * second.predicted[length][arm][line]) / (n + m) for line, ours in lines.items()}
            for arm, lines in arms.items()
        }
        for length, arms in first.predicted.items()
        if length in second.predicted
    }


def read_config(folder: Path) -> dict[str, Any]:
    """The frozen configuration of a run folder. Raises RunError where it is none, or damaged."""
    _check_is_run(folder)
    path = folder / "config.yaml"
    try:
        config = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, OSError, ValueError) as error:  # ValueError: of the text's coding, and of YAML's numbers
        raise RunError(f"{path}: damaged config ({_first_line(error)}); restore it or measure again") from None
    if not isinstance(config, dict) or not isinstance(config.get("experiment"), str):
        raise RunError(f"{path}: names no experiment; was it cut off? Measure again")
    return config


def _check_is_run(folder: Path) -> None:
    if not (folder / "config.yaml").is_file():
        inside = sum(1 for _ in folder.glob("*/config.yaml"))
        remedy = f"it holds {inside} runs, so give {folder}/*" if inside else "give the folder that a run printed"
        raise RunError(f"{folder}: not a run folder (it has no config.yaml); {remedy}")


def _read_json(path: Path) -> dict[str, Any]:
    """The file's content, empty where there is none: not every experiment writes each file."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: damaged JSON ({_first_line(error)}); restore it or measure again") from None
    if not isinstance(content, dict):
        raise RunError(f"{path}: holds no JSON object; restore it or measure again")
    return content


def _read_table(folder: Path, table: str, partial: bool) -> pd.DataFrame:
    """One table from Parquet, else from the streams; without rows where neither exists."""
    path = folder / f"{table}.parquet"
    try:
        if path.exists():
            try:
                with pq.ParquetFile(path) as file:  # each column in one piece; ``read_table`` scans it in hundreds
                    return _frame(in_this_version(file.read(), table, path))
            except (pa.ArrowException, OSError, UnicodeDecodeError) as error:  # the last: of a column's name
                if not partial:  # a run killed while it merged still has its streams
                    problem = f"damaged Parquet ({_first_line(error)})"
                    raise RunError(f"{path}: {problem}; restore it or measure again") from None
        return _frame(merge(folder, table))
    except StreamError as error:
        raise RunError(str(error)) from None


def _frame(table: pa.Table) -> pd.DataFrame:
    frame = table.to_pandas(split_blocks=True, self_destruct=True)  # no copy of tens of millions of rows
    assert isinstance(frame, pd.DataFrame)
    return frame


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
