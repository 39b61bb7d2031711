"""Hold a run against what this machine is expected to do, or make it the expectation.

python -m analysis.expect runs/serve/20260101-120000-000000 --update --machine gpu-node
python -m analysis.expect runs/serve/20260201-120000-000000 --check --machine gpu-node

Expectations are files in baselines/, one per machine, with the values of every block: keep them under version control.
A run is held against the expectation of the same configuration; where and when it ran, and its seed, do not count.
--check gives exit code 1 where a quantity has drifted: its 95 % interval excludes zero, and more than --tolerance.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from analysis import command
from analysis.format import NONE, interval, interval_note, number, percent
from analysis.intervals import bootstrap_difference, bootstrap_mean, covers_zero
from analysis.load import REPEAT_KEYS, Run, RunError, flat_config, load_runs
from analysis.quantities import COLUMNS, add_show, chosen, units_of, values_by_block
from analysis.results import Results, Table, titled
from analysis.statistics import HIGHER_IS_BETTER
from analysis.tables import config_columns
from xpyd.economics.verdict import Interval

DRIFTED = 1  # exit code
BETTER_WITH_MORE = (*HIGHER_IS_BETTER, "win_s", "net_s", "ledger_s")


@dataclass(frozen=True)
class Expectation:
    """What one configuration is expected to give. ``quantities``: one value per block; ``settings``: for people."""

    experiment: str
    digest: str
    settings: dict[str, str]
    commit: str
    updated: str
    quantities: dict[str, list[float]]


@dataclass(frozen=True)
class Drift:
    """A quantity now against then; ``drifted`` is None where too few blocks carry no interval."""

    quantity: str
    expected: Interval
    now: Interval
    change: Interval
    drifted: bool | None

    @property
    def word(self) -> str:
        if self.drifted is None:
            return "too few blocks"
        if not self.drifted:
            return "as expected"
        return "better" if (self.change.mid > 0) == (self.quantity in BETTER_WITH_MORE) else "WORSE"


def digest_of(run: Run) -> str:
    """A name for the configuration, without what only makes a run a repeat of another."""
    facts = {
        key: value
        for key, value in flat_config(run.config)
        if not any(key == repeat or key.startswith(f"{repeat}.") for repeat in REPEAT_KEYS)
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def expectation_of(run: Run) -> Expectation:
    """Every quantity of the run, block by block."""
    settings = {key: value for key, value in config_columns(run).items() if key != "run"}
    values = values_by_block(run, list(units_of(run.experiment)))
    quantities = {name: [float(value) for value in column] for name, column in values.items() if len(column)}
    commit, today = str(run.environment.get("commit", "")), f"{datetime.now():%Y-%m-%d}"
    return Expectation(run.experiment, digest_of(run), settings, commit, today, quantities)


def drifts(run: Run, expectation: Expectation, show: Sequence[str], tolerance: float) -> list[Drift]:
    """Each quantity of ``show``; one that the expectation does not have is left out."""
    found = []
    for name, values in values_by_block(run, show).items():
        before = pd.Series(expectation.quantities.get(name, []), dtype=np.float64)
        if not len(before):
            continue
        expected, now, change = bootstrap_mean(before), bootstrap_mean(values), bootstrap_difference(values, before)
        clear = covers_zero(change)
        drifted = None if clear is None else not clear and abs(change.mid) > tolerance * abs(expected.mid)
        found.append(Drift(name, expected, now, change, drifted))
    return found


def read_expectations(path: Path) -> list[Expectation]:
    """Those in the file, none where there is no file. Raises RunError for a file that is none of ours."""
    if not path.exists():
        return []
    try:
        return TypeAdapter(list[Expectation]).validate_python(json.loads(path.read_text())["expectations"])
    except (OSError, ValueError, KeyError, TypeError, ValidationError) as error:
        first = str(error).splitlines()[0]
        raise RunError(f"{path}: no file of expectations ({first}); restore it, or begin anew with --update") from None


def write_expectations(path: Path, kept: Sequence[Expectation]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = sorted(kept, key=lambda each: (each.experiment, sorted(each.settings.items()), each.digest))
    path.write_text(json.dumps({"expectations": [asdict(each) for each in ordered]}, indent=1) + "\n")


def check(run: Run, expectation: Expectation, show: Sequence[str], tolerance: float) -> Results:
    found = drifts(run, expectation, show, tolerance)
    units = units_of(run.experiment)
    rows = [
        (
            each.quantity,
            interval(each.expected, units[each.quantity]),
            interval(each.now, units[each.quantity]),
            interval(each.change, units[each.quantity]),
            percent(100 * each.change.mid / each.expected.mid) if each.expected.mid else NONE,
            each.word,
        )
        for each in found
    ]
    fewest = min((len(values) for values in values_by_block(run, show).values()), default=0)
    notes = [
        f"Expected: measured {expectation.updated} at commit {expectation.commit[:12] or 'unknown'}.",
        interval_note(fewest, "blocks of this run"),
        f"Drift: the interval of the change excludes zero, and the change is more than {number(tolerance, 'share')} of "
        f"what was expected. Of {len(rows)} quantities about {0.05 * len(rows):.2g} drift by chance alone.",
    ]
    table = Table(
        titled("Against the expectation, measured", run.labels),
        ("quantity", "expected", "now", "change", "of expected", ""),
        rows,
        notes,
    )
    moved = [each for each in found if each.drifted]
    worse = sum(each.word == "WORSE" for each in moved)
    answer = f"{len(moved)} of {len(found)} quantities drifted, {worse} for the worse." if moved else "No drift."
    frame = pd.DataFrame(
        [
            {
                **config_columns(run),
                "quantity": each.quantity,
                "expected": each.expected.mid,
                "now": each.now.mid,
                "change": each.change.mid,
                "change_low": each.change.low,
                "change_high": each.change.high,
                "drifted": each.drifted,
            }
            for each in found
        ]
    )
    return Results(run.name, run.experiment, answer, "Intervals over blocks, unpaired.", [table], frame)


def main(argv: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(argv)
    path = options.baselines / f"{options.machine}.json"
    try:
        (run,) = load_runs(options.runs, options.allow_partial)
        command.check_experiment(run, list(COLUMNS))
        kept = read_expectations(path)
        digest = digest_of(run)
        if options.update:
            mine = command.told(run, expectation_of)
            write_expectations(path, [*(each for each in kept if each.digest != digest), mine])
            print(path)
            return 0
        expectation = next((each for each in kept if each.digest == digest), None)
        if expectation is None:
            there = "; ".join(f"{each.experiment} {', '.join(each.settings.values())}" for each in kept) or "none"
            raise RunError(f"{path}: no expectation of this configuration (there are: {there}); make one with --update")
        show = chosen(options.show, run.experiment)
        results = command.told(run, lambda run: check(run, expectation, show, options.tolerance))
        command.write([results], options)
        return DRIFTED if results.frame["drifted"].eq(True).any() else 0
    except (RunError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return command.USER_ERROR


def _parser() -> argparse.ArgumentParser:
    made = command.parser("expect", __doc__ or "")
    what = made.add_mutually_exclusive_group(required=True)
    what.add_argument("--check", action="store_true", help="show the drift; exit code 1 where there is any")
    what.add_argument("--update", action="store_true", help="make this run the expectation")
    made.add_argument("--machine", required=True, metavar="NAME", help="the file in baselines/, such as gpu-node")
    made.add_argument("--baselines", type=Path, default=Path("baselines"), metavar="DIR", help="default: baselines")
    made.add_argument("--tolerance", type=float, default=0.05, help="drift below this share does not count (0.05)")
    add_show(made)
    return made


if __name__ == "__main__":
    sys.exit(main())
