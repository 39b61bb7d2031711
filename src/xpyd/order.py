"""The order of a run's blocks, on ranks and in simulated time.

Arms alternate A B B A, so that a drift of the machine falls on both alike; a tuned rival sits beside the configured
one, and the null control (colocated once more) at the far end of each pair, mirrored likewise.
"""

from __future__ import annotations

from collections.abc import Sequence


def interleave(num_pairs: int, arms: Sequence[str]) -> list[tuple[int, str]]:
    """(pair, arm) of every block in playing order: all arms, then their mirror, and so on."""
    return [(pair, arm) for pair in range(num_pairs) for arm in (arms if pair % 2 == 0 else arms[::-1])]
