"""The search of ``tune_colocated``: which scheduler settings it tries, and who goes on. Pure.

Successive halving: all candidates play a few blocks, the better ones play more, and the best one meets the settings
that the search began with on requests that none of them has seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge, Gt, Lt, MinLen

from xpyd.economics.verdict import MIN_BLOCK_PAIRS
from xpyd.scheduler.config import Policy, SchedulerConfig
from xpyd.score import Score

Measure = Literal["goodput_rps", "attainment", "itl_p99_s", "ttft_p99_s", "e2e_mean_s"]
HIGHER_IS_BETTER = ("goodput_rps", "attainment")
Count = Annotated[int, Gt(0)]


@dataclass(frozen=True)
class ColocatedSearch:
    """The grid, and how it is searched.

    ``objective``: measures in order; one decides where those before it are within the share ``tie`` of the best.
    The first round plays ``num_repeats`` blocks of each candidate and each later round twice as many; ``keep`` is the
    share that goes on. The final round plays ``num_final_repeats`` blocks of the best and of the start.
    """

    policies: Annotated[tuple[Policy, ...], MinLen(1)]
    max_num_batched_tokens: Annotated[tuple[Count, ...], MinLen(1)]
    max_num_seqs: Annotated[tuple[Count, ...], MinLen(1)]
    objective: Annotated[tuple[Measure, ...], MinLen(1)]
    tie: Annotated[float, Ge(0), Lt(1)]
    num_repeats: Count
    keep: Annotated[float, Gt(0), Lt(1)]
    num_final_repeats: Annotated[int, Ge(MIN_BLOCK_PAIRS)]  # fewer carry no interval

    def candidates(self, start: SchedulerConfig) -> dict[str, SchedulerConfig]:
        """The start, then every point of the grid that can be: a step must hold a token of each sequence.

        Raises ValueError where nothing but the start is left.
        """
        found = {name_of(start): start}
        for policy, chunk, batch in product(self.policies, self.max_num_batched_tokens, self.max_num_seqs):
            if chunk >= batch:
                made = replace(start, policy=policy, max_num_batched_tokens=chunk, max_num_seqs=batch)
                found.setdefault(name_of(made), made)
        if len(found) == 1:
            raise ValueError(
                f"search.max_num_batched_tokens={list(self.max_num_batched_tokens)} with search.max_num_seqs="
                f"{list(self.max_num_seqs)} makes nothing but the settings to begin with (a step must hold a token of "
                "each sequence); add values"
            )
        return found

    def num_rounds(self, num_others: int) -> list[tuple[int, int]]:
        """(candidates beside the start, blocks of each) of every round of the search, the final one left out."""
        found: list[tuple[int, int]] = []
        while num_others > 1:
            found.append((num_others, self.num_repeats * 2 ** len(found)))
            num_others = self.num_kept(num_others)
        return found

    def num_kept(self, num_others: int) -> int:
        """How many of so many candidates go on."""
        return max(1, int(num_others * self.keep))

    def num_blocks(self, num_others: int) -> int:
        """Blocks from begin to end."""
        return sum((n + 1) * repeats for n, repeats in self.num_rounds(num_others)) + 2 * self.num_final_repeats

    def total_repeats(self, num_others: int) -> int:
        """Draws of the workload from begin to end."""
        return sum(repeats for _, repeats in self.num_rounds(num_others)) + self.num_final_repeats


def name_of(scheduler: SchedulerConfig) -> str:
    """A candidate's name: ``chunked 256 x 32`` has a budget of 256 tokens a step and at most 32 sequences."""
    return f"{scheduler.policy} {scheduler.max_num_batched_tokens} x {scheduler.max_num_seqs}"


def ranked(scores: Mapping[str, Score], objective: Sequence[Measure], tie: float) -> list[str]:
    """Names, best first: each place goes to whom the measures leave, in their order, of those not placed yet."""
    left, found = dict(scores), []
    while left:
        found.append(_best(left, objective, tie))
        del left[found[-1]]
    return found


def _best(scores: Mapping[str, Score], objective: Sequence[Measure], tie: float) -> str:
    """Measure by measure, only those within ``tie`` of the best stay; the last measure decides among the rest."""
    names = list(scores)
    for measure in objective:
        costs = {name: _cost(scores[name], measure) for name in names}
        least = min(costs.values())
        last = measure == objective[-1]
        names = [name for name in names if costs[name] <= (least if last else least + tie * abs(least))]
    return names[0]


def _cost(found: Score, measure: Measure) -> float:
    """The measure, turned so that less is better; infinite where nothing was measured."""
    value = float(asdict(found)[measure])
    if np.isnan(value):
        return float("inf")
    return -value if measure in HIGHER_IS_BETTER else value
