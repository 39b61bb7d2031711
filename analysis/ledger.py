"""The ledger of a comparison: bill, win, pools and net per length class, measured and modeled, with a verdict each.

Every figure of a block is computed first; lines are means over block pairs, and their intervals resample pairs. Times
compare requests that finished in both arms of a pair; attainment and goodput count every offered request.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Literal

import numpy as np
import pandas as pd

from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.requests import STAGE_TIMES, request_frame
from analysis.statistics import ONLY_HAND_OFF, UNITS, block_statistics, num_workers
from analysis.tokens import order_tokens
from xpyd import metrics
from xpyd.economics.ledger import ArmTimes, make_ledger
from xpyd.economics.verdict import Interval, Verdict, decide, pools_note
from xpyd.records import COLOCATED, COLOCATED_TUNED, DISAGGREGATED, HYBRID, NULL

OVERALL = "all"
LEDGER_LINES = ("bill_s", "win_s", "ledger_s", "pools_s", "net_s")
BREAKEVEN = "breakeven_output_tokens"
NOTHING = Interval(np.nan, np.nan, np.nan)


@dataclass(frozen=True)
class Line:
    """One quantity of one length class. The arms' values are means over block pairs; ``colocated`` is the rival's.

    ``measured`` is disaggregated - colocated, except for ledger lines (their own sign, see ``xpyd.economics.ledger``)
    and for quantities that only a hand-off has. ``null`` is the same with the null arm in disaggregated's place.
    """

    length: str
    section: Literal["stage", "ledger", "metric"]
    quantity: str
    unit: str
    colocated: float
    disaggregated: float
    measured: Interval
    modeled: float
    null: Interval
    num_pairs: int

    @property
    def error_pct(self) -> float:
        """How far the model was off, in percent of what was measured; NaN where there is nothing to compare."""
        return 100 * (self.modeled - self.measured.mid) / abs(self.measured.mid) if self.measured.mid else np.nan


@dataclass(frozen=True)
class ClassVerdict:
    """The answer for one length class. ``lines`` holds its ledger lines; ``pools_note`` warns where net disagrees."""

    length: str
    num_requests: int
    lines: Mapping[str, Line]
    verdict: Verdict
    pools_note: str


@dataclass(frozen=True)
class Sides:
    """Per-pair statistics (rows: pairs) of the colocated arm and of another, over the same requests."""

    colocated: pd.DataFrame
    other: pd.DataFrame

    def ledgers(self) -> pd.DataFrame:
        """The ledger lines (columns, seconds per request) of each pair (rows)."""
        pairs = self.colocated.index.intersection(self.other.index)
        arms = [arm.loc[pairs, STAGE_TIMES].to_numpy() for arm in (self.colocated, self.other)]
        rows = {}
        for pair, *times in zip(pairs, *arms, strict=True):
            made = make_ledger(*(ArmTimes(*own) for own in times))
            rows[pair] = {name: getattr(made, name) for name in LEDGER_LINES}
        return pd.DataFrame.from_dict(rows, orient="index", columns=list(LEDGER_LINES), dtype="float64")

    def change(self, quantity: str) -> pd.Series[float]:
        """What the other arm changes, per pair; its own value for quantities that only a hand-off has."""
        if quantity in ONLY_HAND_OFF:
            return self.other[quantity]
        return self.other[quantity] - self.colocated[quantity]

    def breakeven_output_tokens(self) -> float:
        """Tokens after which splitting has paid for its later first token, from the mean changes over all pairs."""
        delta_ttft_s = float(self.change("ttft_s mean").mean())
        saved_gap_s = -float(self.change("mean_gap_s mean").mean())
        return float(metrics.breakeven_output_tokens(delta_ttft_s, saved_gap_s))


class Comparison:
    """Everything that one ``compare`` run, or several pooled ones, says. Raises RunError without a complete pair.

    ``rivals`` are the colocated arms that were played, ``rival`` the one that splitting is held against: the better.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.tokens = order_tokens(run)
        self.requests = request_frame(run, self.tokens)
        self._sides: dict[tuple[str, str, str], Sides] = {}  # several tables ask for the same
        played = set(run.tables["blocks"]["arm"])
        self.rivals = [arm for arm in (COLOCATED, COLOCATED_TUNED) if arm in played] or [COLOCATED]
        split, null = ([*self.rivals, DISAGGREGATED], [self.rivals[-1], NULL])
        self.pairs = {
            DISAGGREGATED: complete_pairs(run, split),
            HYBRID: complete_pairs(run, [*split, HYBRID]),
            NULL: complete_pairs(run, null),
        }
        if not self.pairs[DISAGGREGATED]:
            where = ", ".join(str(path) for path in run.paths)
            raise RunError(f"{where}: no block pair has ended in both arms; let the run go on, or measure again")

    @cached_property
    def rival(self) -> str:
        """The rival whose requests took less time end to end: the one that is harder to beat."""
        chosen = self.requests[self.requests["pair"].isin(self.pairs[DISAGGREGATED])]
        times = {arm: chosen.loc[chosen["arm"] == arm, "e2e_s"].mean() for arm in self.rivals}
        return min(self.rivals, key=lambda arm: (np.isnan(times[arm]), times[arm]))

    @cached_property
    def lengths(self) -> list[str]:
        """Overall first, then the length classes from short to long."""
        return [OVERALL, *sorted(self.requests["length"].unique(), key=lower_edge)]

    @cached_property
    def lines(self) -> list[Line]:
        return [line for length in self.lengths for line in self._lines_of(length)]

    @cached_property
    def verdicts(self) -> list[ClassVerdict]:
        return [self._verdict_of(length) for length in self.lengths]

    def line(self, length: str, quantity: str) -> Line:
        return next(line for line in self.lines if (line.length, line.quantity) == (length, quantity))

    def sides(self, length: str, other: str = DISAGGREGATED) -> Sides:
        """Both arms' statistics for one length class, from the pairs that ended in both.

        The null control is held against the arm that it repeats, any other against the better rival.
        """
        return self.sides_of(length, self.rivals[-1] if other == NULL else self.rival, other)

    def sides_of(self, length: str, base: str, other: str) -> Sides:
        """The same for any two arms; the pairs are those of ``sides``."""
        paired = self.pairs[other if other in self.pairs else DISAGGREGATED]
        asked = length if paired else OVERALL, base, other  # without a pair every length has nothing
        if asked not in self._sides:
            self._sides[asked] = self._find_sides(*asked, paired)
        return self._sides[asked]

    def _find_sides(self, length: str, base: str, other: str, pairs: Sequence[int]) -> Sides:
        requests, blocks = self.requests, self.run.tables["blocks"]
        chosen = requests["pair"].isin(pairs)
        if length != OVERALL:
            chosen &= requests["length"] == length
        offered = [requests[chosen & (requests["arm"] == arm)] for arm in (base, other)]
        finished = [own[own["status"] == "finished"] for own in offered]
        keys = [pd.MultiIndex.from_frame(own[["pair", "request_id"]]) for own in finished]
        timed = [finished[0][keys[0].isin(keys[1])], finished[1][keys[1].isin(keys[0])]]
        found = [
            block_statistics(
                offered=offered[side],
                timed=timed[side],
                gaps=self.tokens.gaps,
                blocks=blocks[blocks["arm"] == arm],
                slo=self.run.config["slo"],
                num_workers=num_workers(self.run),
            )
            for side, arm in enumerate((base, other))
        ]
        return Sides(*found)

    def net_against(self, base: str, other: str) -> Interval:
        """End-to-end seconds per request that ``other`` saves against ``base``, over all lengths."""
        return bootstrap_mean(self.sides_of(OVERALL, base, other).ledgers()["net_s"])

    def _lines_of(self, length: str) -> Iterator[Line]:
        sides, null = self.sides(length), self.sides(length, NULL)
        predicted = self._predicted(length)
        ledgers, null_ledgers = sides.ledgers(), null.ledgers()
        made = make_ledger(*predicted) if predicted else None
        for name in STAGE_TIMES:
            modeled = getattr(predicted[1], name) - getattr(predicted[0], name) if predicted else np.nan
            yield _line(length, "stage", name, "s", sides, sides.change(name), modeled, null.change(name))
        for name in LEDGER_LINES:
            modeled = getattr(made, name) if made else np.nan
            yield _line(length, "ledger", name, "s", sides, ledgers[name], modeled, null_ledgers[name])
        for name, unit in UNITS.items():
            yield _line(length, "metric", name, unit, sides, sides.change(name), np.nan, null.change(name))
        breakeven = Interval(np.nan, sides.breakeven_output_tokens(), np.nan)
        num_pairs = len(sides.other)
        yield Line(length, "metric", BREAKEVEN, "tokens", np.nan, np.nan, breakeven, np.nan, NOTHING, num_pairs)

    def _predicted(self, length: str) -> tuple[ArmTimes, ArmTimes] | None:
        """What the run predicted for a class; overall is the mean of the classes, weighted by offered requests."""
        offered = self.requests.loc[self.requests["arm"] == COLOCATED, "length"]
        shares = {length: 1.0}
        if length == OVERALL:
            shares = {str(name): float(share) for name, share in offered.value_counts(normalize=True).items()}
        arms = self.rival, DISAGGREGATED
        if not all(arm in self.run.predicted.get(name, {}) for name in shares for arm in arms):
            return None
        colocated, disaggregated = (
            ArmTimes(
                *(
                    sum(share * self.run.predicted[n][arm][f.name] for n, share in shares.items())
                    for f in fields(ArmTimes)
                )
            )
            for arm in arms
        )
        return colocated, disaggregated

    def _verdict_of(self, length: str) -> ClassVerdict:
        lines = {line.quantity: line for line in self.lines if line.length == length and line.section == "ledger"}
        win, bill, ledger, net = (lines[name].measured for name in ("win_s", "bill_s", "ledger_s", "net_s"))
        verdict = decide(win, bill, ledger, lines["ledger_s"].num_pairs)
        offered = self.requests[
            (self.requests["arm"] == DISAGGREGATED) & self.requests["pair"].isin(self.pairs[DISAGGREGATED])
        ]
        num_requests = len(offered) if length == OVERALL else int((offered["length"] == length).sum())
        return ClassVerdict(length, num_requests, lines, verdict, pools_note(net, verdict.answer))


def complete_pairs(run: Run, arms: Sequence[str]) -> list[int]:
    """Pairs whose blocks ended in all of ``arms``."""
    blocks = run.tables["blocks"]
    ended = [set(blocks.loc[blocks["arm"] == arm, "pair"]) for arm in arms]
    return sorted(int(pair) for pair in set.intersection(*ended))


def lower_edge(length: str) -> int:
    """For sorting: the first number of a length class, such as 129 for ``129-512`` and 8192 for ``>8192``."""
    return int(length.removeprefix(">").split("-")[0])


def _line(
    length: str,
    section: Literal["stage", "ledger", "metric"],
    quantity: str,
    unit: str,
    sides: Sides,
    values: pd.Series[float],
    modeled: float,
    null_values: pd.Series[float],
) -> Line:
    means = [float(arm[quantity].mean()) if quantity in arm else np.nan for arm in (sides.colocated, sides.other)]
    null = bootstrap_mean(null_values)
    if quantity in ONLY_HAND_OFF:
        means[0], null = np.nan, NOTHING
    num_pairs = int(values.notna().sum())
    return Line(length, section, quantity, unit, means[0], means[1], bootstrap_mean(values), modeled, null, num_pairs)
