"""What splitting sustains within the limits, what that costs, and how busy its ranks are then."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan

import numpy as np
import pandas as pd

from analysis.claims.claim import Claim, Claimed, Measured, NoValue, Part, Runs, Unmeasurable
from analysis.claims.measurements import COMMON, SATURATED, measured, measured_cut
from analysis.intervals import CONFIDENCE, SEED
from analysis.load import Run
from analysis.saturation_curve import (
    NUM_RESAMPLES,
    PRICED,
    Point,
    Saturated,
    attained,
    between,
    complete,
    curve,
    ratios,
    saturated,
)
from xpyd.economics.verdict import MIN_BLOCK_PAIRS, Interval
from xpyd.records import COLOCATED, COLOCATED_TUNED, DISAGGREGATED

SAMPLED = "repeats"


def rival_of(found: Sequence[Saturated]) -> str:
    """The colocated arm that sustains most; the configured one where neither has a saturation point."""
    known = [each for each in found if each.arm in (COLOCATED, COLOCATED_TUNED) and each.rate.mid > 0]
    return max(known, key=lambda each: each.rate.mid).arm if known else COLOCATED


def sustained(run: Run) -> Measured:
    """Rate sustained within the limits, split over the better colocated arm. Raises NoValue without a point of both.

    The interval resamples repeats; a repeat alone has no saturation point, so that the estimate is the only sample.
    """
    points = complete(curve(run))
    found = saturated(points, target_of(run))
    rival = rival_of(found)
    if not {rival, DISAGGREGATED} <= {each.arm for each in found}:
        raise Unmeasurable("the run has not both arms")
    for each in found:
        if each.arm in (rival, DISAGGREGATED) and not each.rate.mid > 0:
            raise NoValue(f"{each.arm} never gave way, or never held, at the rates played: widen search.*")
    mid = ratios(found, rival)[DISAGGREGATED].mid
    by_repeat = {arm: attained(points, arm) for arm in (rival, DISAGGREGATED)}
    repeats = [frame.columns for frame in by_repeat.values()]
    shared = repeats[0].intersection(repeats[1])
    low, high = ratio_bounds(by_repeat[DISAGGREGATED][shared], by_repeat[rival][shared], target_of(run))
    return Measured(
        Interval(low, mid, high), (mid,), len(shared), f"{SAMPLED} of each rate", f"against {words(run, rival)}"
    )


def ratio_bounds(ours: pd.DataFrame, theirs: pd.DataFrame, target: float) -> tuple[float, float]:
    """The 95 % interval of the ratio of two arms' rates, over resampled repeats (the columns); NaN: fewer than five.

    Where a resampled arm held at every rate played, its own rate lies between the highest and infinity; where it held
    at none, between 0 and the lowest: the interval is as wide as that leaves it.
    """
    count = len(ours.columns)
    if count < MIN_BLOCK_PAIRS:
        return nan, nan
    picks = np.random.default_rng(SEED).integers(0, count, (NUM_RESAMPLES, count))
    mine, other = (np.array([between(each, pick, target) for pick in picks]) for each in (ours, theirs))
    with np.errstate(divide="ignore"):
        lows, highs = mine[:, 0] / other[:, 1], mine[:, 1] / other[:, 0]
    tail = (1 - CONFIDENCE) / 2
    return float(np.quantile(lows, tail, method="lower")), float(np.quantile(highs, 1 - tail, method="higher"))


def cost_ratios(run: Run) -> pd.Series:
    """Cost of a million good tokens, split over colocated, each arm at the highest rate that it holds, by repeat."""
    points = complete(curve(run))
    rival = rival_of(saturated(points, target_of(run)))
    split, together = (held(points, arm, target_of(run)).blocks[PRICED] for arm in (DISAGGREGATED, rival))
    return split / together


def uses(run: Run, arm: str) -> pd.Series:
    """Share of time in which an arm's instances run a step, mean of its pools, at the rate it sustains, by repeat."""
    point = held(complete(curve(run)), arm, target_of(run))
    return point.blocks[[f"use {pool}" for pool in point.pools]].mean(axis=1)


def held(points: Sequence[Point], arm: str, target: float) -> Point:
    """An arm at the highest rate that it sustained. Raises NoValue where it sustained none."""
    own = [point for point in points if point.arm == arm]
    low = next((each.bracket[0] for each in saturated(own, target)), float("nan")) if own else float("nan")
    found = next((point for point in own if point.rate_rps == low), None)
    if found is None:
        raise NoValue(f"{arm} held at no rate played: lower search.start_rps or loosen slo")
    return found


def target_of(run: Run) -> float:
    return float(run.config["search"]["attainment"])


def words(run: Run, rival: str) -> str:
    """Which rival, and whether it was tuned."""
    if rival == COLOCATED_TUNED:
        return "the tuned colocated arm"
    tuned = (run.config.get("rival") or {}).get("use") == "tuned"
    return "the colocated arm" + (", which beats the tuned one" if tuned else ", which is not tuned")


def _goodput(runs: Runs) -> Measured:
    return sustained(runs[SATURATED.name])


def _cost(runs: Runs) -> Measured:
    run = runs[SATURATED.name]
    prices = run.config["prices"]
    hours = ", ".join(f"{prices[f'{role}_rank_hour']:g} {role}" for role in ("prefill", "decode", "colocated"))
    return measured_cut(
        cost_ratios(run), SAMPLED, f"prices as configured, a rank and hour: {hours} {prices['currency']}"
    )


def _use(arm: str) -> Part:
    ranges = {
        COLOCATED: Claimed(0.4, 0.6, "40 to 60 %"),
        DISAGGREGATED: Claimed(0.8, 0.95, "80 to 95 %", "above"),
    }

    def measure(runs: Runs) -> Measured:
        return measured(uses(runs[SATURATED.name], arm), SAMPLED, "time with a step running, not a GPU's occupancy")

    return Part(f"use, {arm}", "share", ranges[arm], measure)


CLAIMS = [
    Claim(
        "goodput",
        "Splitting serves 2 to 4 times the requests within the limits.",
        COMMON + " Goodput as DistServe defines it: the highest rate at which 90 % of requests meet their limits.",
        "Highest rate of arrivals at which each arm meets both limits, split over colocated, on as many ranks.",
        (SATURATED,),
        (Part("rate sustained, split over colocated", "ratio", Claimed(2, 4, "2 to 4 times", "above"), _goodput),),
    ),
    Claim(
        "cost",
        "Splitting costs 30 to 50 % less for the same tokens.",
        COMMON,
        "One less the ratio of the arms' cost of a million output tokens within the limits, each at its highest rate.",
        (SATURATED,),
        (Part("cost saved", "share", Claimed(0.3, 0.5, "30 to 50 % lower", "above"), _cost),),
    ),
    Claim(
        "utilisation",
        "Split pools are used 80 to 95 % of the time, colocated ranks 40 to 60 %.",
        COMMON,
        "Share of time in which an arm's instances run a step, at the highest rate that the arm sustains.",
        (SATURATED,),
        (_use(DISAGGREGATED), _use(COLOCATED)),
    ),
    Claim(
        "chunked_rival",
        "At equal ranks, chunked prefill on colocated ranks sustains as much as splitting does.",
        "The case for chunked prefill (Sarathi-Serve's stall-free batching, vLLM v1's default); no figure is claimed.",
        "Rate sustained within the limits, split over colocated with chunked prefill, tuned where that wins.",
        (SATURATED,),
        (Part("rate sustained, split over chunked", "ratio", Claimed(-inf, 1, "no more than 1"), _goodput),),
    ),
]
