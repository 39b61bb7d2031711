"""The hybrid arm: held against both pure arms per length class, and its decisions, reckoned against measured.

The claim to test is that deciding request by request is never worse than the better of the two pure arms. That one is
found per length class from the same pairs, by its mean, which is hard on the hybrid arm: luck counts for its rival.
Over many runs it is a claim about all lines of a table at once, and is judged by intervals that hold together.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.format import NONE, interval, number, percent
from analysis.intervals import bootstrap_mean, mean_among
from analysis.ledger import OVERALL, Comparison
from analysis.requests import STAGE_TIMES
from analysis.results import Plot, Table, titled
from analysis.style import ARM_COLOURS, INK, seconds_axis
from analysis.tables import MAX_ROWS
from xpyd.economics.verdict import Interval
from xpyd.records import DISAGGREGATED, HYBRID

RESOLUTION_S = 1e-9  # of the stamps: less is rounding
SHOWN = {"goodput_rps": "1/s", "itl_s p99": "s", "ttft_s p99": "s", "ttft_s mean": "s", "e2e_s mean": "s"}


def saved_s(comparison: Comparison, length: str, base: str) -> Interval:
    """End-to-end seconds per request that the hybrid arm saves against another (negative: it loses)."""
    return bootstrap_mean(_saved(comparison, length, base))


def _saved(comparison: Comparison, length: str, base: str) -> Any:
    """The same in every block pair."""
    return comparison.sides_of(length, base, HYBRID).ledgers()["net_s"]


def better_arm(comparison: Comparison, length: str) -> str:
    """The pure arm whose requests of a length class took less time end to end."""
    sides = comparison.sides_of(length, comparison.rival, DISAGGREGATED)
    split_wins = sides.other["e2e_s mean"].mean() < sides.colocated["e2e_s mean"].mean()
    return DISAGGREGATED if split_wins else comparison.rival


def finding(saved: Interval) -> str:
    """What an interval of seconds saved says."""
    if not saved.known:
        return "no interval"
    if saved.high < -RESOLUTION_S:
        return "WORSE"
    return "better" if saved.low > RESOLUTION_S else "not worse"


def hybrid_table(comparison: Comparison) -> Table:
    """Per length class: how many requests moved, and what hybrid routing saves against either pure arm."""
    decided = decided_frame(comparison)
    rows = []
    for length in comparison.lengths:
        chosen = _decided_in(decided, length)
        against = {base: saved_s(comparison, length, base) for base in (comparison.rival, DISAGGREGATED)}
        better = better_arm(comparison, length)
        cells = (interval(found, "s") for found in against.values())
        rows.append((length, better, finding(against[better]), *cells, _moved(chosen), str(len(chosen))))
    columns = ("input tokens", "better pure arm", "hybrid is", f"against {comparison.rival}", "against disaggregated")
    notes = [
        "Against: mean end-to-end seconds per request that it saves, compared with that arm (negative: it loses). "
        "WORSE: than the better of the two, beyond the interval."
    ]
    title = titled("Hybrid routing, measured", comparison.run.labels)
    return Table(title, (*columns, "moved", "requests"), rows, notes, num_left=3)


def hybrid_runs_table(comparisons: Sequence[Comparison]) -> Table:
    """Runs that differ, every length class of each: whether hybrid routing is worse in any, judged all at once."""
    num_lines = sum(len(_told_apart(each)) for each in comparisons)
    rows, num_worse = [], 0
    for comparison in comparisons:
        decided = decided_frame(comparison)
        name = comparison.run.name.rpartition("/")[-1]
        for length in _told_apart(comparison):
            better = better_arm(comparison, length)
            alone = saved_s(comparison, length, better)
            among = mean_among(_saved(comparison, length, better), num_lines)
            num_worse += finding(alone) == "WORSE"
            sides = comparison.sides_of(length, better, HYBRID)
            theirs, ours = (number(float(side["e2e_s mean"].mean()), "s") for side in (sides.colocated, sides.other))
            moved = _moved(_decided_in(decided, length))
            intervals = (interval(found, "s") for found in (alone, among))
            rows.append((name, length, f"{better} {theirs}", ours, *intervals, finding(among), moved))
    columns = ("run", "input tokens", "better pure arm", "hybrid", "saved, alone", "all at once", "hybrid is", "moved")
    notes = [
        "Mean end-to-end time per request, and what hybrid routing saves of it against the better pure arm (negative: "
        "it loses). Alone: the 95 % interval of the line. All at once: wider, so that those of all "
        f"{num_lines} lines hold together at 95 % (Bonferroni, Student's t); by these it is judged. Were it never "
        f"worse, 2.5 % of such lines would still be so alone: {num_lines / 40:.1f} of these. Found: {num_worse}."
    ]
    return Table("Hybrid routing over all runs, measured", columns, rows, notes, num_left=3)


def three_arms_table(comparison: Comparison) -> Table:
    """Both pure arms and the hybrid one, side by side, over all lengths."""
    rows = []
    for arm in (comparison.rival, DISAGGREGATED, HYBRID):
        other = HYBRID if arm != HYBRID else comparison.rival
        sides = comparison.sides_of(OVERALL, arm, other)
        cells = (number(float(sides.colocated[name].mean()), unit) for name, unit in SHOWN.items())
        rows.append((arm, *cells))
    return Table(titled("Three arms, all lengths, measured", comparison.run.labels), ("arm", *SHOWN), rows)


def reckoning_table(comparison: Comparison) -> Table:
    """The stages that were reckoned and those that came, means over requests: how well is the policy informed?"""
    decided = decided_frame(comparison)
    rows = []
    for moves, word in ((False, "stayed"), (True, "moved")):
        chosen = decided[(decided["moves"] == moves) & (decided["status"] == "finished")]
        if not len(chosen):
            continue
        for stage in (*STAGE_TIMES, "e2e_s"):
            reckoned, measured = float(chosen[f"reckoned_{stage}"].mean()), float(chosen[stage].mean())
            error = percent(100 * (reckoned / measured - 1)) if measured else NONE
            rows.append((word, stage.removesuffix("_s"), number(reckoned, "s"), number(measured, "s"), error))
    reasons = decided["why"].value_counts()
    notes = [f"{count} of {len(decided)}: {reason}." for reason, count in reasons.items()]
    columns = ("requests that", "stage", "reckoned", "measured", "error")
    return Table(
        titled("Decisions, reckoned against measured", comparison.run.labels), columns, rows, notes, num_left=2
    )


def decisions_table(comparison: Comparison) -> Table:
    """One row per decision: what was chosen, what either way would have cost, and what came of it."""
    rows = []
    for row in decided_frame(comparison).head(MAX_ROWS).to_dict("records"):
        way = f"{row['decision_prefill_rank']} to {row['decode_rank']}" if row["moves"] else str(row["decode_rank"])
        costs = (number(float(row[name]), "s") for name in ("stay_s", "move_s", "reckoned_e2e_s", "e2e_s"))
        what = (row["pair"], row["request_id"], row["input_len"], row["output_len"])
        rows.append((*map(str, what), "move" if row["moves"] else "stay", row["why"], way, *costs))
    columns = (
        "pair",
        "request",
        "in",
        "out",
        "chosen",
        "because",
        "rank",
        "stay costs",
        "move costs",
        "reckoned",
        "e2e",
    )
    notes = [
        "Stay, move: modeled cost of the best way of either kind, what other requests lose included. Reckoned: the "
        "request's own end-to-end time by the way chosen; e2e: measured."
    ]
    return Table(titled("Decisions of the hybrid arm", comparison.run.labels), columns, rows, notes)


def decided_frame(comparison: Comparison) -> pd.DataFrame:
    """The last decision on every request of the hybrid arm, beside what was measured of it."""
    last = comparison.run.tables["decisions"].drop_duplicates(["block", "request_id"], keep="last")
    stages = {name: f"reckoned_{name}" for name in STAGE_TIMES}
    last = last.rename(columns={**stages, "reason": "why", "prefill_rank": "decision_prefill_rank"})
    last["reckoned_e2e_s"] = last[list(stages.values())].sum(axis=1)
    return comparison.requests.merge(last, on=["block", "request_id"], how="inner")


def _told_apart(comparison: Comparison) -> list[str]:
    """The length classes, and all of them together; a single class is all."""
    return comparison.lengths if len(comparison.lengths) > 2 else comparison.lengths[:1]


def _decided_in(decided: pd.DataFrame, length: str) -> pd.DataFrame:
    return decided if length == OVERALL else decided[decided["length"] == length]


def _moved(decided: pd.DataFrame) -> str:
    return number(float(decided["moves"].mean()), "share") if len(decided) else NONE


def hybrid_plot(comparison: Comparison) -> Plot:
    return Plot(
        "Hybrid routing against both pure arms",
        "End-to-end seconds per request that deciding request by request saves, with 95 % intervals over block pairs. "
        "Left of zero it loses.",
        lambda figure: draw_saved(figure, comparison),
        height_in=1.2 + 0.5 * len(comparison.lengths),
    )


def draw_saved(figure: Figure, comparison: Comparison) -> None:
    axes = figure.add_subplot()
    for place, length in enumerate(comparison.lengths):
        for offset, base in ((-0.14, comparison.rival), (0.14, DISAGGREGATED)):
            found = saved_s(comparison, length, base)
            label = f"against {base}" if not place else "_"
            axes.plot([found.mid], [place + offset], "D", color=ARM_COLOURS[base], markersize=6, label=label)
            if found.known:
                axes.plot([found.low, found.high], [place + offset] * 2, color=ARM_COLOURS[base], linewidth=2)
    axes.axvline(0, color=INK, linewidth=1)
    axes.set_yticks(range(len(comparison.lengths)), comparison.lengths)
    axes.set(xlabel="saved per request, end to end", ylabel="input tokens")
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    seconds_axis(axes, "x")
    axes.legend(loc="best")
