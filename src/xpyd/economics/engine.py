"""What a step takes in a run, from what it takes alone: two factors, and how far steps scatter about that.

The shape of the cost (linear and quadratic in tokens) comes from steps alone, which cover lengths and batches evenly;
how much slower the same steps are among the other processes of a run comes from a short block that was played.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import numpy as np

from xpyd.economics.cost import ComputeModel, ComputePoint
from xpyd.economics.nnls import nnls

NUM_PARTS = 100


@dataclass(frozen=True)
class EngineModel:
    """Factors on what steps take alone: on the step itself with its decodes, and on the prompt tokens in it."""

    step_factor: float = 1.0
    prompt_factor: float = 1.0

    def of(self, alone: ComputeModel) -> ComputeModel:
        """The step model in a run."""
        return ComputeModel(
            self.step_factor * alone.base_s,
            self.prompt_factor * alone.prefill_token_s,
            self.prompt_factor * alone.prefill_pair_s,
            self.step_factor * alone.decode_seq_s,
            self.step_factor * alone.context_token_s,
            self.step_factor * alone.hidden_s,
        )


@dataclass(frozen=True)
class Scatter:
    """A step over the usual one, each of these as likely; steps with a prompt and without apart."""

    prefill: tuple[float, ...]
    decode: tuple[float, ...]


def fit_engine(alone: ComputeModel, played: Sequence[ComputePoint]) -> EngineModel:
    """Least squares on the median step of each size that occurs, by relative error, weighed by how often it does.

    Medians: what scatters about them is ``scatter``'s. A factor is 1 where no step says anything about it.
    """
    sizes: defaultdict[tuple[int, int], list[ComputePoint]] = defaultdict(list)
    for point in played:
        sizes[size_of(point)].append(point)
    if not sizes:
        return EngineModel()
    rows, targets = [], []
    for own in sizes.values():
        middle = float(np.median([point.seconds for point in own]))
        prompt_s = alone.chunk_s(own[0].num_prefill_tokens)
        rest_s = float(np.median([step_s(alone, point) for point in own])) - prompt_s
        weight = len(own) ** 0.5 / middle
        rows.append((weight * rest_s, weight * prompt_s))
        targets.append(weight * middle)
    step_factor, prompt_factor = nnls(np.array(rows), np.array(targets)).tolist()
    return EngineModel(step_factor, prompt_factor if any(prompt for _, prompt in rows) else 1.0)


def scatter(model: ComputeModel, calibrations: Sequence[Sequence[Sequence[ComputePoint]]]) -> Scatter:
    """How the steps of each block lie about its median step, by ``model``; (1,) where a kind did not occur.

    About that of the block: how the machine's speed changes from block to block is told apart (``economics.drift``).
    Of each calibration's blocks, means of equal parts from the least to the greatest: a stall seen once in a thousand
    steps counts as that, where the greatest quantile of a hundred would make it one in a hundred. Of each part, the
    median over the calibrations: what only one of them saw is a minute of this machine that a run need not see.
    """
    kinds: dict[bool, list[list[float]]] = {True: [], False: []}
    for blocks, kind in product(calibrations, kinds):
        found: list[float] = []
        for block in blocks:
            ratios = [point.seconds / step_s(model, point) for point in block if (point.num_prefill_tokens > 0) == kind]
            if ratios:
                found += (np.array(ratios) / np.median(ratios)).tolist()
        if found:
            kinds[kind].append(_parts(found))
    prefill, decode = (tuple(np.median(own, axis=0).tolist()) if own else (1.0,) for own in kinds.values())
    return Scatter(prefill, decode)


def _parts(values: list[float]) -> list[float]:
    """Means of ``NUM_PARTS`` equal parts of the values in order; of fewer values, each fills several parts."""
    repeated = np.repeat(np.sort(values), NUM_PARTS)
    return repeated.reshape(NUM_PARTS, len(values)).mean(axis=1).tolist()  # type: ignore[no-any-return]


def size_of(point: ComputePoint) -> tuple[int, int]:
    """What steps of a run have in common that count as repeats: context is never the same twice."""
    return point.num_prefill_tokens, point.num_decode_seqs


def step_s(model: ComputeModel, point: ComputePoint) -> float:
    """What ``model`` says of the step of a point."""
    return model.step_s(
        point.num_prefill_tokens, point.num_cached_tokens, point.num_decode_seqs, point.num_context_tokens
    )
