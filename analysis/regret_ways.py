"""What real ranks made of a plan's ways, and what the advised one loses: resampled over repeats, all ways alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.intervals import CONFIDENCE, SEED
from analysis.load import Run
from analysis.plan_turns import word_for
from analysis.saturation_curve import NUM_RESAMPLES, PRICED, Point, attained, between
from xpyd.economics.verdict import MIN_BLOCK_PAIRS, Interval

Draws = NDArray[np.float64]  # [resamples, 2]: the lowest and highest rate that a way may sustain by them


@dataclass(frozen=True)
class Played:
    """A way on real ranks. ``at``: the rate it sustains, its lowest and highest value; the same where it is known."""

    name: str
    splits: bool
    at: tuple[float, float]
    draws: Draws  # empty: too few repeats
    goodput: Interval  # requests per second, at the highest rate played that held
    cost: Interval  # of a million output tokens within the limits

    @property
    def rate(self) -> Interval:
        """NaN in the middle where the way never gave way, or never held."""
        known = self.at[0] == self.at[1]
        return _interval(self.at[0] if known else np.nan, self.draws[:, 0], self.draws[:, 1])


@dataclass(frozen=True)
class Regret:
    """What the advised way sustains less than the best: ``relative`` to that, ``rate`` in requests per second."""

    advised: str
    best: str
    relative: Interval
    rate: Interval

    @property
    def told(self) -> bool:
        """Whether it can be told from none."""
        return self.advised != self.best and not (self.rate.known and self.rate.low <= 0)


def play_of(run: Run, points: Sequence[Point], ways: pd.DataFrame) -> list[Played]:
    """Every way that was played, the one that sustains most first; all resampled alike, as they share requests."""
    target = float(run.config["search"]["attainment"])
    splits = ways.groupby("candidate")["num_colocated"].first() == 0
    shares = {name: attained(points, name) for name in dict.fromkeys(point.arm for point in points)}
    count = len(points[0].blocks)
    num = NUM_RESAMPLES if count >= MIN_BLOCK_PAIRS else 0
    picks = np.random.default_rng(SEED).integers(0, count, (num, count))
    played = []
    for name, own in shares.items():
        at = between(own, np.arange(count), target)
        draws = np.array([between(own, pick, target) for pick in picks]).reshape(-1, 2)
        held = [point for point in points if point.arm == name and point.rate_rps <= at[0]]
        held = [point for point in held if point.blocks["attainment"].mean() >= target]
        top = max(held, key=lambda point: point.rate_rps, default=None)
        nothing = Interval(np.nan, np.nan, np.nan)
        figures = [nothing if top is None else top.mean(figure) for figure in ("goodput_rps", PRICED)]
        played.append(Played(name, bool(splits[name]), at, draws, *figures))
    return sorted(played, key=lambda each: (-each.at[0], np.nan_to_num(each.cost.mid, nan=np.inf)))


def regret_of(advised: Sequence[str], played: Sequence[Played]) -> Regret | None:
    """Of the advised ways, which are two in a tie, the one that does worst; None where one of them was not played."""
    found = {each.name: each for each in played}
    if not advised or any(name not in found for name in advised):
        return None
    best = played[0]
    worst = min((found[name] for name in advised), key=lambda each: each.at[0])
    if worst.at[0] >= best.at[0]:
        none = Interval(0.0, 0.0, 0.0)
        return Regret(worst.name, worst.name, none, none)
    mine, other = worst.draws, best.draws
    rate = _interval(best.at[0] - worst.at[1], other[:, 0] - mine[:, 1], other[:, 1] - mine[:, 0])
    relative = _interval(1 - worst.at[1] / best.at[0], 1 - _over(worst, best)[:, 1], 1 - _over(worst, best)[:, 0])
    return Regret(worst.name, best.name, relative, rate)


def over_best(way: Played, best: Played) -> Interval:
    """What a way sustains over what the best does, paired."""
    known = way.at[0] == way.at[1] and best.at[0] == best.at[1]
    ratio = _over(way, best)
    return _interval(way.at[0] / best.at[0] if known else np.nan, ratio[:, 0], ratio[:, 1])


def ties(played: Sequence[Played]) -> list[str]:
    """The ways that cannot be told from the best."""
    best, *others = played
    ratios = {each.name: _interval(1.0, *_over(each, best).T) for each in others}
    return [name for name, ratio in ratios.items() if ratio.known and ratio.high >= 1]


def real_word(played: Sequence[Played]) -> str:
    """Split or not, by real ranks: the best of either kind over the other, in the plan's words."""
    split, together = (next((each for each in played if each.splits == splits), None) for splits in (True, False))
    if split is None or together is None:
        return "unknown"
    word = word_for(over_best(split, together))
    if word == "unknown" and split.at[1] <= together.at[0]:
        return "do not split"
    return "split" if word == "unknown" and split.at[0] >= together.at[1] else word


def _over(way: Played, best: Played) -> Draws:
    """The lowest and highest ratio of two ways' rates in every resample."""
    with np.errstate(divide="ignore", invalid="ignore"):
        low, high = way.draws[:, 0] / best.draws[:, 1], way.draws[:, 1] / best.draws[:, 0]
    return np.column_stack([np.nan_to_num(low, nan=0.0, posinf=np.inf), np.where(np.isnan(high), np.inf, high)])


def _interval(mid: float, lows: NDArray[np.float64], highs: NDArray[np.float64]) -> Interval:
    """As wide as the resamples leave it; without resamples none."""
    if not len(lows):
        return Interval(np.nan, mid, np.nan)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(lows, tail, method="lower"), np.quantile(highs, 1 - tail, method="higher")
    return Interval(float(low), mid, float(high))
