"""The bubble of a pipeline: closed form."""

from __future__ import annotations


def bubble_share(num_stages: int, num_micro_batches: int) -> float:
    """The share of a step that each stage idles where all stages and micro-batches take equally long.

    ``(stages - 1) / (micro-batches + stages - 1)`` (GPipe, arXiv:1811.06965, section 2.3).
    """
    return (num_stages - 1) / (num_micro_batches + num_stages - 1)
