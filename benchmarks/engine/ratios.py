"""From samples to ratios: inside one repeat, then their median. Pure.

A machine that slows down for a second slows all arms of a repeat, and the ratio stays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.engine.points import Point

ENGINE, ATTENTION = "engine", "attention products"
PRODUCTS = ("products, engine's", "products, oneDNN's", "products, plain")  # ways to multiply with weights
RIVALS = ("transformers, dynamic", "transformers, static")
MOST = {"decode": 1.25, "prefill": 1.15}  # times the bare products
OVERHEAD_MOST = 0.03

Repeat = Mapping[str, float]  # seconds of each arm, measured one after the other


@dataclass(frozen=True)
class Row:
    """One point; times are medians in seconds, ratios medians of ratios."""

    model: str
    step: str
    num_repeats: int
    engine_s: float
    weight_products_s: float  # the fastest of PRODUCTS
    attention_products_s: float
    transformers_s: float | None  # with the cache that is faster here; None: not measured
    cache: str  # of transformers
    of_products: float  # engine over all products
    of_weight_products: float  # engine over the products with weights alone
    ahead: float | None  # transformers over engine: above 1 the engine is faster
    most: float  # the target of ``of_products``

    @property
    def met(self) -> bool:
        return self.of_products <= self.most and (self.ahead is None or self.ahead >= 1)


def row_of(point: Point, repeats: Sequence[Repeat]) -> Row:
    """The limit of each repeat: the fastest way to multiply with weights, and attention's products."""
    weights = [min(repeat[name] for name in PRODUCTS) for repeat in repeats]
    rivals = [name for name in RIVALS if all(name in repeat for repeat in repeats)]
    best = min(rivals, key=lambda name: median(repeat[name] for repeat in repeats), default=None)
    return Row(
        model=point.model,
        step=point.name,
        num_repeats=len(repeats),
        engine_s=median(repeat[ENGINE] for repeat in repeats),
        weight_products_s=median(weights),
        attention_products_s=median(repeat[ATTENTION] for repeat in repeats),
        transformers_s=None if best is None else median(repeat[best] for repeat in repeats),
        cache="" if best is None else best.split(", ")[1],
        of_products=median(r[ENGINE] / (w + r[ATTENTION]) for r, w in zip(repeats, weights, strict=True)),
        of_weight_products=median(r[ENGINE] / w for r, w in zip(repeats, weights, strict=True)),
        ahead=None if best is None else median(repeat[best] / repeat[ENGINE] for repeat in repeats),
        most=MOST[point.kind],
    )
