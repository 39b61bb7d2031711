"""Numbers behind a ``saturation`` run: goodput, use and price at every rate, and the rate at which an arm gives way."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import isotonic_regression

from analysis.intervals import CONFIDENCE, SEED, bootstrap_mean
from analysis.load import Run, RunError
from analysis.requests import request_frame
from analysis.statistics import block_statistics, instance_of, meets_slo, num_workers
from analysis.tokens import order_tokens
from xpyd.economics.prices import PriceConfig, cost_per_million
from xpyd.economics.verdict import MIN_BLOCK_PAIRS, Interval
from xpyd.records import SPLIT_ARMS
from xpyd.units import NS_PER_S

NUM_RESAMPLES = 2000
STATISTICS = ("attainment", "goodput_rps", "ttft_s p99", "itl_s p99")
PRICED = "cost_per_million"


@dataclass(frozen=True)
class Point:
    """An arm at one rate. ``blocks``: a row per repeat, a column per figure, the use of each pool among them."""

    arm: str
    rate_rps: float
    blocks: pd.DataFrame

    def mean(self, figure: str) -> Interval:
        return bootstrap_mean(self.blocks[figure])

    @property
    def pools(self) -> list[str]:
        return [name.removeprefix("use ") for name in map(str, self.blocks) if name.startswith("use ")]


@dataclass(frozen=True)
class Saturated:
    """Where an arm gives way. ``rate``: estimate and interval; ``bracket``: the rates played around it, NaN: none."""

    arm: str
    rate: Interval
    bracket: tuple[float, float]
    draws: NDArray[np.float64]  # of the rate, resampled; the repeats are those of every arm


def curve(run: Run) -> list[Point]:
    """Every arm at every rate it played, in order. Raises RunError where no block has ended."""
    return points_of(run, lambda arm: price_per_hour(run, arm), lambda arm, blocks: use_of_pools(run, arm, blocks))


def points_of(
    run: Run, per_hour: Callable[[str], float], more: Callable[[str, pd.DataFrame], pd.DataFrame] | None = None
) -> list[Point]:
    """Likewise, at prices (``per_hour``, by arm) of the caller, and with ``more`` figures of an arm's blocks."""
    played, blocks = run.tables["saturation"], run.tables["blocks"]
    if played.empty:
        raise RunError(f"{run.paths[0]}: no block has ended; let the run go on, or measure again")
    tokens = order_tokens(run)
    requests = request_frame(run, tokens)
    slo = run.config["slo"]
    points = []
    for (arm, rate), own in played.groupby(["arm", "rate_rps"], sort=True):
        mine = blocks[blocks["block"].isin(own["block"])]
        offered = requests[requests["block"].isin(own["block"])]
        timed = offered[offered["status"] == "finished"]
        found = block_statistics(offered, timed, tokens.gaps, mine, slo, num_workers(run))[list(STATISTICS)]
        duration_s = (mine.set_index("pair")["end_ns"] - mine.set_index("pair")["begin_ns"]) / NS_PER_S
        good = offered[meets_slo(offered, slo)].groupby("pair")["num_tokens"].sum()
        found["good_tokens_per_s"] = good.reindex(found.index).fillna(0) / duration_s
        found[PRICED] = [cost_per_million(per_hour(str(arm)), tokens) for tokens in found["good_tokens_per_s"]]
        points.append(Point(str(arm), float(str(rate)), found.join(more(str(arm), mine)) if more else found))
    return points


def complete(points: Sequence[Point]) -> list[Point]:
    """The rates that have been played in every repeat: a run that was stopped midway has one that was not."""
    most = max(len(point.blocks) for point in points)
    return [point for point in points if len(point.blocks) == most]


def attained(points: Sequence[Point], arm: str) -> pd.DataFrame:
    """Attainment of an arm: a row per rate, in order, a column per repeat."""
    return pd.DataFrame({each.rate_rps: each.blocks["attainment"] for each in points if each.arm == arm}).T.dropna(
        axis=1
    )


def between(shares: pd.DataFrame, pick: NDArray[np.int64], target: float) -> tuple[float, float]:
    """The rate that an arm sustains by the picked repeats: its lowest and highest value, the same where it is known.

    Where it held at every rate played that is between the highest and infinity, where at none between 0 and the lowest.
    """
    rates, means = shares.index.to_numpy(dtype=np.float64), shares.to_numpy()[:, pick].mean(axis=1)
    found = crossing(rates, means, target)
    if not np.isnan(found):
        return found, found
    held = means.mean() >= target  # of attainment made to fall with the rate, no value crosses: all are on one side
    return (float(rates[-1]), np.inf) if held else (0.0, float(rates[0]))


def price_per_hour(run: Run, arm: str) -> float:
    """What the ranks of an arm cost for an hour."""
    placement, prices = run.config["placement"], PriceConfig(**run.config["prices"])
    if arm not in SPLIT_ARMS:
        return prices.per_hour(num_colocated=num_workers(run))
    ranks = [int(placement[f"num_{role}"]) * instance_of(placement, role)[1] for role in ("prefill", "decode")]
    return prices.per_hour(*ranks)


def use_of_pools(run: Run, arm: str, blocks: pd.DataFrame) -> pd.DataFrame:
    """Share of a block in which the instances of each pool run a step: ``sum(steps) / (instances * duration)``.

    One row per repeat, a column ``use <role>`` for each pool. Waiting for KV or for requests is no use.
    """
    placement, steps = run.config["placement"], run.tables["steps"]
    if arm in SPLIT_ARMS:
        pools = {role: int(placement[f"num_{role}"]) for role in ("prefill", "decode")}
    else:
        width = int(placement.get("colocated_tp") or 1)
        pools = {"colocated" if arm != "hybrid" else "hybrid": num_workers(run) // width}
    steps = steps[steps["block"].isin(blocks["block"])]
    pair_of = blocks.set_index("block")["pair"]
    duration_s = (blocks.set_index("pair")["end_ns"] - blocks.set_index("pair")["begin_ns"]) / NS_PER_S
    found = pd.DataFrame(index=duration_s.index)
    for role, count in pools.items():
        own = steps[steps["role"] == role]
        busy_s = ((own["end_ns"] - own["begin_ns"]) / NS_PER_S).groupby(own["block"].map(pair_of)).sum()
        found[f"use {role}"] = busy_s.reindex(found.index).fillna(0.0) / (count * duration_s)
    return found


def saturated(points: Sequence[Point], target: float) -> list[Saturated]:
    """The saturation point of every arm: where attainment, made to fall with the rate, crosses ``target``.

    Between two rates it is interpolated over the logarithm of the rate. The interval resamples repeats, the same for
    all rates and arms, as every repeat plays the same requests in all of them.
    """
    by_arm: dict[str, list[Point]] = {}
    for point in points:
        by_arm.setdefault(point.arm, []).append(point)
    repeats = sorted(set.intersection(*(set(point.blocks.index) for point in points)))
    generator = np.random.default_rng(SEED)
    picks = generator.integers(0, len(repeats), (NUM_RESAMPLES, len(repeats))) if repeats else np.empty((0, 0), int)
    return [_saturated(arm, own, target, repeats, picks) for arm, own in by_arm.items()]


def _saturated(
    arm: str, points: Sequence[Point], target: float, repeats: list[int], picks: NDArray[np.int64]
) -> Saturated:
    rates = np.array([point.rate_rps for point in points])
    shares = np.array([point.blocks["attainment"].reindex(repeats) for point in points], dtype=np.float64)
    if not len(repeats):
        return Saturated(arm, Interval(np.nan, np.nan, np.nan), (np.nan, np.nan), np.empty(0))
    mid = crossing(rates, shares.mean(axis=1), target)
    draws = np.array([crossing(rates, shares[:, pick].mean(axis=1), target) for pick in picks])
    known = len(repeats) >= MIN_BLOCK_PAIRS and bool(np.isfinite(draws).all())
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(draws, [tail, 1 - tail]) if known else (np.nan, np.nan)
    failed = rates[shares.mean(axis=1) < target]
    top = float(failed.min()) if len(failed) else np.nan
    passed = rates[rates < top] if len(failed) else rates
    bottom = float(passed.max()) if len(passed) else np.nan
    return Saturated(arm, Interval(float(low), mid, float(high)), (bottom, top), draws)


def crossing(rates: NDArray[np.float64], shares: NDArray[np.float64], target: float) -> float:
    """The rate at which ``shares`` (one per rate, rising) fall below ``target``; NaN where all are on one side."""
    falling = isotonic_regression(shares, increasing=False).x
    below = np.flatnonzero(falling < target)
    if not len(below) or below[0] == 0:
        return float("nan")
    right = below[0]
    high, low = falling[right - 1], falling[right]
    part = (high - target) / (high - low)
    return float(np.exp(np.log(rates[right - 1]) + part * np.log(rates[right] / rates[right - 1])))


def ratios(found: Sequence[Saturated], base: str) -> Mapping[str, Interval]:
    """Each arm's saturation point over that of ``base``, with the interval of the paired resamples."""
    reference = next(each for each in found if each.arm == base)
    shown = {}
    for each in found:
        drawn = each.draws / reference.draws if len(each.draws) == len(reference.draws) else np.empty(0)
        known = each.rate.known and reference.rate.known
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2]) if known else (np.nan, np.nan)
        shown[each.arm] = Interval(float(low), each.rate.mid / reference.rate.mid, float(high))
    return shown
