"""What tokens cost: prices of ranks from the configuration, throughput from a measurement or a model. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from annotated_types import Ge, Len

Price = Annotated[float, Ge(0)]
S_PER_H = 3600.0


@dataclass(frozen=True)
class PriceConfig:
    """What a rank costs for an hour, by its role; a rank of a colocated or hybrid arm counts as ``colocated``.

    Prices are the user's: of a cloud instance divided by its ranks, or of a node over its life.
    """

    currency: Annotated[str, Len(1, 8)]
    prefill_rank_hour: Price
    decode_rank_hour: Price
    colocated_rank_hour: Price

    def per_hour(self, num_prefill: int = 0, num_decode: int = 0, num_colocated: int = 0) -> float:
        """What so many ranks cost for an hour."""
        return (
            num_prefill * self.prefill_rank_hour
            + num_decode * self.decode_rank_hour
            + num_colocated * self.colocated_rank_hour
        )


def cost_per_million(price_per_hour: float, tokens_per_s: float) -> float:
    """Price of a million tokens: ``price_per_hour / (tokens_per_s * 3600) * 10^6``; infinite where none came."""
    return price_per_hour / (tokens_per_s * S_PER_H) * 1e6 if tokens_per_s > 0 else float("inf")
