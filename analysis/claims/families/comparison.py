"""What splitting does to latencies and to throughput, on the same requests in both arms."""

from __future__ import annotations

from math import inf

import pandas as pd

from analysis.claims.claim import Claim, Claimed, Measured, Measurement, Part, Runs, Unmeasurable
from analysis.claims.measurements import COMMON, COMPARED, measured_cut, measured_ratio, tokens_per_s
from analysis.ledger import OVERALL, Comparison
from analysis.load import Run
from xpyd.records import COLOCATED, COLOCATED_TUNED, DISAGGREGATED

CLOSED = Measurement(
    "throughput",
    "compare",
    (
        "num_pairs=6",
        "null_control=false",
        "rival=configured",
        "workload.arrival.kind=closed_loop",
        "workload.arrival.rate_rps=null",
        "workload.arrival.concurrency=16",
        "workload.num_requests=32",
    ),
    quick=("num_pairs=5", "workload.num_requests=24"),
    tells={"workload.arrival.concurrency": 16},
)


def tail_ratios(run: Run, arm: str) -> pd.Series:
    """p99 over p50 of an arm's decode gaps, by block pair; COLOCATED is the rival that is faster end to end."""
    sides = Comparison(run).sides(OVERALL)
    values = sides.other if arm == DISAGGREGATED else sides.colocated
    return values["itl_s p99"] / values["itl_s p50"]


def ttft_ratios(run: Run) -> pd.Series:
    """Median time to first token, split over colocated, by block pair."""
    sides = Comparison(run).sides(OVERALL)
    return sides.other["ttft_s p50"] / sides.colocated["ttft_s p50"]


def throughput_ratios(run: Run) -> pd.Series:
    """Output tokens per second, split over colocated (the better arm where there are two), by block pair."""
    rates = tokens_per_s(run)
    rivals = [arm for arm in (COLOCATED, COLOCATED_TUNED) if arm in rates]
    if not rivals or DISAGGREGATED not in rates:
        raise Unmeasurable("the run has not both arms")
    return rates[DISAGGREGATED] / rates[rates[rivals].mean().idxmax()]


def _tail(arm: str) -> Part:
    claimed = {
        COLOCATED: Claimed(5, 20, "about 10 times (here: 5 to 20)"),
        DISAGGREGATED: Claimed(1, 1.5, "about 1.2 times (here: up to 1.5)", "below"),
    }[arm]

    def measure(runs: Runs) -> Measured:
        return measured_ratio(tail_ratios(runs[COMPARED.name], arm), "block pairs", _rival(runs[COMPARED.name]))

    return Part(f"p99 over p50, {arm}", "ratio", claimed, measure)


def _ttft(runs: Runs) -> Measured:
    return measured_cut(ttft_ratios(runs[COMPARED.name]), "block pairs", _rival(runs[COMPARED.name]))


def _throughput(runs: Runs) -> Measured:
    run = runs[CLOSED.name]
    return measured_ratio(
        throughput_ratios(run), "block pairs", f"closed loop of {run.config['workload']['num_requests']}"
    )


def _rival(run: Run) -> str:
    tuned = COLOCATED_TUNED in set(run.tables["blocks"]["arm"])
    return "the better of two colocated rivals, one tuned" if tuned else "the colocated rival is not tuned"


CLAIMS = [
    Claim(
        "tail_latency",
        "Splitting brings the p99 of decode gaps from about 10 times their p50 to 1.2 times.",
        COMMON,
        "p99 over p50 of all gaps of a block, in either arm of a comparison on the same requests.",
        (COMPARED,),
        (_tail(COLOCATED), _tail(DISAGGREGATED)),
    ),
    Claim(
        "ttft",
        "Splitting lowers the time to first token by 50 to 70 %.",
        COMMON,
        "One less the ratio of the arms' median TTFT, on the same requests and as many ranks.",
        (COMPARED,),
        (Part("TTFT saved", "share", Claimed(0.5, 0.7, "50 to 70 % lower", "above"), _ttft),),
    ),
    Claim(
        "no_more_throughput",
        "Disaggregated prefill does not improve throughput.",
        "vLLM's statement on disaggregated prefilling, as the plan of this suite gives it.",
        "Output tokens per second, split over colocated, with as many requests always under way and as many ranks.",
        (CLOSED,),
        (Part("throughput, split over colocated", "ratio", Claimed(-inf, 1, "no more than 1"), _throughput),),
    ),
]
