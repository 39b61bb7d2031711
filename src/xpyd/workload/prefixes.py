"""Shared beginnings of prompts: a few system prompts, some asked for more often than others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, NamedTuple

import numpy as np
from annotated_types import Ge, Gt


class Prefix(NamedTuple):
    """The first ``num_tokens`` tokens of a prompt, made from ``seed`` alone."""

    num_tokens: int
    seed: int


@dataclass(frozen=True)
class PrefixConfig:
    """``num_prefixes`` beginnings of ``prefix_len`` tokens; the k-th is drawn with weight k ** -``skew``."""

    num_prefixes: Annotated[int, Gt(0)]
    prefix_len: Annotated[int, Gt(0)]
    skew: Annotated[float, Ge(0)] = 1.0  # Zipf's exponent; 0: all alike

    def draw(self, generator: np.random.Generator, seeds: np.random.SeedSequence, num: int) -> list[Prefix]:
        """A prefix for each of ``num`` requests. The same ``seeds`` make the same prefixes, whoever draws them."""
        of_prefix = seeds.generate_state(self.num_prefixes).tolist()
        weights = np.arange(1, self.num_prefixes + 1, dtype=float) ** -self.skew
        chosen = generator.choice(self.num_prefixes, size=num, p=weights / weights.sum())
        return [Prefix(self.prefix_len, of_prefix[which]) for which in chosen.tolist()]
