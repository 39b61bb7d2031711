"""Many runs in one table: a row per setting, with intervals, and what each changes against a baseline.

python -m analysis.pivot runs/compare/* --by fabric,workload.num_requests
python -m analysis.pivot runs/compare/* --by transfer.mode --baseline transfer.mode=whole --show bill_s,net_s
python -m analysis.pivot cluster_a/* cluster_b/* --by environment.hosts --format latex

Runs that share the values of the --by keys are repeats of one setting, and are pooled. Runs that differ in anything
else are refused: a table of two changes proves neither.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import pandas as pd

from analysis import command
from analysis.format import interval, interval_note
from analysis.intervals import bootstrap_difference, bootstrap_mean, covers_zero
from analysis.load import Run, RunError, differences, flat_config, load_runs, machines_of, pooled
from analysis.quantities import COLUMNS, add_show, chosen, nearest, units_of, values_by_block
from analysis.results import Results, Table
from xpyd.economics.verdict import Interval

# Facts of the environment that follow from a setting, and so may differ with it.
CONSEQUENCES = ("environment.routes", "environment.labels")


@dataclass(frozen=True)
class Setting:
    """One row: the values of the --by keys, and per quantity one value per block (pair), pooled over its runs."""

    values: tuple[str, ...]
    run: Run
    columns: dict[str, pd.Series]


def pivot(
    runs: Sequence[Run], by: Sequence[str], show: Sequence[str], baseline: str | None, allow_mixed: bool
) -> Results:
    """The table over all runs. Raises RunError for unknown keys or quantities, and for runs that differ elsewhere."""
    _refuse_other_changes(runs, by, allow_mixed)
    settings = [_setting(run, by, show) for run in _pooled_by(runs, by, allow_mixed)]
    base = _find_baseline(settings, by, baseline) if baseline else None
    units = units_of(runs[0].experiment)
    rows, tidy = [], []
    for setting in settings:
        cells: list[str] = []
        numbers: dict[str, Any] = dict(zip(by, setting.values, strict=True))
        for name in show:
            mean = bootstrap_mean(setting.columns[name])
            cells.append(interval(mean, units[name]))
            numbers |= _numbers(name, mean)
            if base is not None:
                change = bootstrap_difference(setting.columns[name], base.columns[name])
                cells.append("baseline" if setting is base else _marked(change, units[name]))
                numbers |= _numbers(f"{name} change", change)
        num_blocks = max(len(column) for column in setting.columns.values())
        rows.append((*setting.values, *cells, str(num_blocks), ", ".join(setting.run.labels)))
        tidy.append({**numbers, "num_blocks": num_blocks, "labels": ", ".join(setting.run.labels)})
    heads = [head for name in show for head in ([name, "change"] if base is not None else [name])]
    fewest = min(len(column) for setting in settings for column in setting.columns.values())
    notes = [interval_note(fewest, "blocks or block pairs of each row")]
    if base is not None:
        notes.append(f"change: against {_words(by, base.values)}; * its 95 % interval excludes zero.")
    changed = {key for run in runs for key in differences(runs[0], run)} - set(CONSEQUENCES)
    if unnamed := sorted(key for key in changed if not _named(key, by)):
        notes.append(f"The runs also differ in {', '.join(unnamed)}.")
    table = Table(
        f"{runs[0].experiment} by {', '.join(by)}, all lengths, measured",
        (*by, *heads, "blocks", "labels"),
        rows,
        notes,
        num_left=len(by),
    )
    answer = f"{len(settings)} settings from {sum(len(run.paths) for run in runs)} runs."
    return Results("pivot", runs[0].experiment, answer, "One row each above.", [table], pd.DataFrame(tidy))


def value_of(run: Run, key: str) -> str:
    """A setting as a short word: ``fabric`` is its name, ``workload.arrival.rate_rps`` its value. Raises RunError."""
    if key == "environment.machines":
        return ", ".join(machines_of(run))
    if key.startswith("environment."):
        found = run.environment.get(key.removeprefix("environment."))
        return ", ".join(map(str, found)) if isinstance(found, list) else str(found)
    found = run.config
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            known = [*run.config, *(name for name, _ in flat_config(run.config))]
            raise RunError(f"--by {key}: {run.paths[0]} has no such key; {nearest(key, known)}")
        found = found[part]
    if not isinstance(found, dict):
        return str(found)
    if key == "placement":
        return (
            f"{found['num_colocated']}C" if found["num_colocated"] else f"{found['num_prefill']}P{found['num_decode']}D"
        )
    if "name" in found:
        return str(found["name"])
    raise RunError(f"--by {key}: a group of keys; name one of {', '.join(f'{key}.{name}' for name in found)}")


def _refuse_other_changes(runs: Sequence[Run], by: Sequence[str], allow_mixed: bool) -> None:
    """Raises RunError where runs differ in more than ``by``, or know no such key."""
    for run in runs:
        for key in by:
            value_of(run, key)
        if run.experiment != runs[0].experiment:
            raise RunError(f"{run.paths[0]}: experiment {run.experiment}, but {runs[0].paths[0]}: {runs[0].experiment}")
        other = {key: both for key, both in differences(runs[0], run).items() if not _covered(key, by)}
        if other and not allow_mixed:
            shown = "; ".join(f"{key}: {a!r} and {b!r}" for key, (a, b) in list(other.items())[:4])
            raise RunError(
                f"{run.paths[0]}: differs from {runs[0].paths[0]} in more than --by {','.join(by)} ({shown}); add the "
                "key to --by, or pass --allow-mixed"
            )


def _pooled_by(runs: Sequence[Run], by: Sequence[str], allow_mixed: bool) -> list[Run]:
    """Raises RunError where a row would pool clusters, which may have hosts of the same names."""
    groups: dict[tuple[str, ...], list[Run]] = {}
    for run in runs:
        group = groups.setdefault(tuple(value_of(run, key) for key in by), [])
        other = [key for key in differences(group[0], run) if key.startswith("environment.")] if group else []
        if (other := [key for key in other if key not in CONSEQUENCES]) and not allow_mixed:
            raise RunError(
                f"{run.paths[0]}: in one row with {group[0].paths[0]} by --by {','.join(by)}, but of another "
                f"{', '.join(other)}; add {other[0]} to --by, or pass --allow-mixed to pool them"
            )
        group.append(run)
    return [reduce(pooled, group) for group in groups.values()]


def _covered(key: str, by: Sequence[str]) -> bool:
    """Whether a difference in ``key`` belongs to what --by tells apart; another cluster differs in all its facts."""
    if key.startswith("environment."):
        return key in CONSEQUENCES or any(name.startswith("environment.") for name in by)
    return _named(key, by)


def _named(key: str, by: Sequence[str]) -> bool:
    return any(key == name or key.startswith(f"{name}.") for name in by)


def _setting(run: Run, by: Sequence[str], show: Sequence[str]) -> Setting:
    return Setting(tuple(value_of(run, key) for key in by), run, values_by_block(run, show))


def _find_baseline(settings: Sequence[Setting], by: Sequence[str], baseline: str) -> Setting:
    wanted = dict(part.split("=", 1) for part in baseline.split(",") if "=" in part)
    if not wanted or set(wanted) - set(by):
        raise RunError(f"--baseline {baseline}: give key=value[,key=value] with keys of --by {','.join(by)}")
    fitting = [s for s in settings if all(s.values[by.index(key)] == value for key, value in wanted.items())]
    if len(fitting) != 1:
        there = "; ".join(_words(by, setting.values) for setting in settings)
        raise RunError(f"--baseline {baseline}: fits {len(fitting)} rows, must fit one of: {there}")
    return fitting[0]


def _words(by: Sequence[str], values: Sequence[str]) -> str:
    return ",".join(f"{key}={value}" for key, value in zip(by, values, strict=True))


def _marked(change: Interval, unit: str) -> str:
    return interval(change, unit) + (" *" if covers_zero(change) is False else "")


def _numbers(name: str, found: Interval) -> dict[str, float]:
    return {name: found.mid, f"{name} low": found.low, f"{name} high": found.high}


def main(argv: Sequence[str] | None = None) -> int:
    made = command.parser("pivot", __doc__ or "")
    made.add_argument("--by", required=True, metavar="KEYS", help="config keys that tell the rows apart: fabric,model")
    add_show(made)
    made.add_argument("--baseline", metavar="KEY=VALUE", help="the row that the others are compared with")
    options = made.parse_args(argv)
    by = [key.strip() for key in options.by.split(",")]
    try:
        runs = load_runs(options.runs, options.allow_partial, allow_mixed=True)
        for run in runs:
            command.check_experiment(run, list(COLUMNS))
        show = chosen(options.show, runs[0].experiment)
        command.write([pivot(runs, by, show, options.baseline, options.allow_mixed)], options)
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return command.USER_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
