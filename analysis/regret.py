"""How good a plan's advice was: its ways against a sweep of real runs that played them, and what the advised one loses.

A sweep is a set of ``saturation`` runs on the planned ranks, one for each ratio. Each has a colocated arm of its own:
a way counts by how much it sustains over that arm in the same session, where both played the same requests in turns,
so that a machine that was slower one day is no ratio's fault.

``regret = best real way - advised way``, over the best. The best is chosen by the same runs, which is hard on the plan.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from analysis.format import NONE, interval, interval_note, number
from analysis.intervals import CONFIDENCE
from analysis.load import Run, RunError
from analysis.results import Table
from analysis.saturation_curve import Point, Saturated, saturated
from analysis.statistics import instance_of, num_workers
from xpyd.economics.verdict import Interval
from xpyd.records import COLOCATED, COLOCATED_TUNED, DISAGGREGATED, HYBRID

SAME = ("model", "slo", "scheduler")  # what a plan and its sweep have in common, beside the lengths of the workload
LENGTHS = ("classes", "trace", "input_len", "output_len")


@dataclass(frozen=True)
class Played:
    """A way in the sweep: what it sustains over the colocated one of its session, and its logarithm resampled."""

    name: str
    rate: float  # requests per second, the mean over sessions
    over: Interval
    logs: NDArray[np.float64]
    num_sessions: int


@dataclass(frozen=True)
class Sweep:
    """What was really played. ``base``: the colocated way, against which each session counts."""

    base: str
    ways: dict[str, Played]
    num_repeats: int
    labels: tuple[str, ...]


@dataclass(frozen=True)
class Regret:
    """What the advised way sustains less than the best: ``relative`` to that, ``rate`` in requests per second."""

    advised: str
    best: str
    relative: Interval
    rate: Interval


def read_sweep(plan: Run, runs: Sequence[Run]) -> Sweep:
    """Every way that was played. Raises RunError where a run answers another question, or says nothing of a way."""
    sessions: defaultdict[str, list[tuple[float, float, NDArray[np.float64]]]] = defaultdict(list)
    for run in runs:
        _check_same(plan, run)
        found = {each.arm: each for each in saturated(_points(run), float(run.config["search"]["attainment"]))}
        base = found[COLOCATED]
        for arm, each in found.items():
            name = way_of(run, arm)
            if name is None:
                continue
            if np.isnan(each.rate.mid):
                raise RunError(
                    f"{run.paths[0]}: {arm} ({name}) never gave way, or never held; measure it again with a higher "
                    "search.max_rps or another slo"
                )
            logs = np.log(each.draws / base.draws) if len(each.draws) else np.empty(0)
            sessions[name].append((each.rate.mid, float(np.log(each.rate.mid / base.rate.mid)), logs))
    bases = {str(way_of(run, COLOCATED)) for run in runs}
    if len(bases) > 1:
        raise RunError(
            f"the sweep's colocated arms differ ({', '.join(sorted(bases))}), so that its sessions have nothing in "
            "common; set placement.colocated_tp alike in all of them"
        )
    return Sweep(
        bases.pop(),
        {name: _played(name, found) for name, found in sessions.items()},
        min(int(run.config["search"]["num_repeats"]) for run in runs),
        tuple(dict.fromkeys(label for run in runs for label in run.labels)),
    )


def way_of(run: Run, arm: str) -> str | None:
    """The name that a plan gives to what an arm of a saturation run played; None where plans do not weigh it."""
    placement, transfer = run.config["placement"], run.config["transfer"]
    ends = [f"{placement[f'num_{role}']}{role[0].upper()}{_width(placement, role)}" for role in ("prefill", "decode")]
    codec = (transfer.get("codec") or {}).get("name", "none")
    moved = " ".join(["".join(ends), transfer["mode"], *([codec] if codec != "none" else [])])
    together = _together(run, placement)
    return {
        COLOCATED: together,
        COLOCATED_TUNED: f"{together} tuned",
        DISAGGREGATED: moved,
        HYBRID: f"{moved} hybrid",
    }.get(arm)


def _width(placement: Mapping[str, Any], role: str) -> str:
    kind, width = instance_of(placement, role)
    return f"({kind}{width})" if width > 1 else ""


def _together(run: Run, placement: Mapping[str, Any]) -> str:
    """The colocated arm on the same ranks: as wide as configured, or as the wider end that divides them."""
    kind, width = instance_of(placement, "colocated")
    if width == 1 and not placement.get("colocated_tp"):
        ends = sorted((instance_of(placement, role) for role in ("prefill", "decode")), key=lambda end: -end[1])
        fitting = [end for end in ends if end[0] in ("tp", "ep") and num_workers(run) % end[1] == 0]
        kind, width = fitting[0] if fitting else ("tp", 1)
    return f"{num_workers(run) // width}C" + (f"({kind}{width})" if width > 1 else "")


def regret_of(advised: Sequence[str], sweep: Sweep) -> Regret:
    """Of the advised ways, which are two in a tie, the one that does worst. Raises RunError where one is absent."""
    for name in advised:
        if name not in sweep.ways:
            raise RunError(
                f"the plan's way {name} is not in the sweep, which played {', '.join(sweep.ways)}; play it with "
                "python -m experiments.saturation (placement and transfer as in its name) and add the run to --against"
            )
    best = max(sweep.ways.values(), key=lambda each: each.over.mid)
    worst = min((sweep.ways[name] for name in advised), key=lambda each: each.over.mid)
    relative = _interval(1 - worst.over.mid / best.over.mid, 1 - np.exp(worst.logs - best.logs))
    scale = best.over.mid * sweep.ways[sweep.base].rate
    rate = Interval(relative.low * scale, relative.mid * scale, relative.high * scale)
    return Regret(worst.name, best.name, relative, rate)


def regret_table(run: Run, planned: Sequence[Saturated], sweep: Sweep, regret: Regret) -> Table:
    """Every way that was planned or played: what the plan said of it, and what the runs did."""
    said = {each.arm: each.rate.mid for each in planned}
    base = said.get(sweep.base, np.nan)
    rows = []
    for name in sorted({*said, *sweep.ways}, key=lambda name: (-_over(sweep, name), name)):
        real, own = sweep.ways.get(name), said.get(name, np.nan)
        words = [word for word, which in (("advised", regret.advised), ("best", regret.best)) if which == name]
        rows.append(
            (
                name,
                number(own, "1/s"),
                NONE if real is None else number(real.rate, "1/s"),
                number(own / base, ""),
                NONE if real is None else interval(real.over, ""),
                ", ".join(words),
            )
        )
    notes = [
        f"Regret: {interval(regret.relative, 'share')} of what the best real way sustains, "
        f"{interval(regret.rate, '1/s')}. The best way was chosen by these runs, which is hard on the plan.",
        "Over colocated, real: against the colocated arm of the same session, on the same requests. Sessions: "
        f"{sweep.ways[sweep.base].num_sessions}.",
        interval_note(sweep.num_repeats, "repeats"),
    ]
    absent = [name for name in said if name not in sweep.ways]
    if absent:
        notes.append(f"Not a whole sweep: {', '.join(absent)} was planned and not played.")
    columns = ("way", "plan: sustains", "real: sustains", "plan: over colocated", "real: over colocated", "")
    title = f"The plan against real runs [plan: {', '.join(run.labels)}; real: {', '.join(sweep.labels)}]"
    return Table(title, columns, rows, notes)


def answer(regret: Regret) -> str:
    """The regret in a sentence."""
    if regret.advised == regret.best:
        return f"Against real runs: no regret, {regret.best} is the best of them too."
    low = regret.relative.low
    lost = f"{regret.advised} sustains {interval(regret.relative, 'share')} less than {regret.best}"
    if regret.relative.known and low <= 0:
        return f"Against real runs: no regret that can be told from none; {lost}."
    return f"Against real runs: {lost}."


def _points(run: Run) -> list[Point]:
    rows = run.tables["saturation"]
    if rows.empty:
        raise RunError(f"{run.paths[0]}: no block has ended; let the run go on, or measure again")
    return [
        Point(str(arm), float(str(rate)), own.groupby("repeat")[["attainment"]].mean())
        for (arm, rate), own in rows.groupby(["arm", "rate_rps"], sort=True)
    ]


def _check_same(plan: Run, run: Run) -> None:
    """Raises RunError where a run answers another question."""
    if run.experiment != "saturation":
        raise RunError(f"{run.paths[0]}: a run of {run.experiment}; a sweep is made of runs of experiments.saturation")
    pairs = {key: (plan.config.get(key), run.config.get(key)) for key in SAME}
    pairs |= {f"workload.{key}": (plan.config["workload"].get(key), run.config["workload"].get(key)) for key in LENGTHS}
    pairs["num_ranks"] = (plan.config["plan"]["num_ranks"], num_workers(run))
    for key, (ours, theirs) in pairs.items():
        if ours != theirs:
            raise RunError(
                f"{run.paths[0]}: {key} is {theirs!r}, in the plan {ours!r}; a plan is held against runs of the same "
                "question: measure or plan again"
            )


def _over(sweep: Sweep, name: str) -> float:
    return sweep.ways[name].over.mid if name in sweep.ways else -1.0


def _played(name: str, sessions: Sequence[tuple[float, float, NDArray[np.float64]]]) -> Played:
    """The mean over sessions, each resampled on its own."""
    logs = np.mean([log for _, _, log in sessions], axis=0)
    mid = float(np.exp(np.mean([log for _, log, _ in sessions])))
    return Played(
        name, float(np.mean([rate for rate, _, _ in sessions])), _interval(mid, np.exp(logs)), logs, len(sessions)
    )


def _interval(mid: float, draws: NDArray[np.float64]) -> Interval:
    known = len(draws) > 0 and bool(np.isfinite(draws).all())
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) if known else (np.nan, np.nan)
    return Interval(float(low), float(mid), float(high))
