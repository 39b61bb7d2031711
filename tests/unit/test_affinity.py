"""Cores are divided equally, and shared only where there are too few."""

from __future__ import annotations

import pytest

from xpyd.worker.affinity import count_threads, divide_cores


def test_equal_shares() -> None:
    assert divide_cores([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3]]


def test_too_few_cores_are_shared_by_all() -> None:
    assert divide_cores([0, 1], 3) == [[0, 1]] * 3


@pytest.mark.parametrize(
    ("mine", "workers", "num_threads"),
    [
        ([0, 1], [[0, 1], [2, 3]], 2),  # its own
        ([0, 1], [[0, 1]] * 2, 1),  # shared in equal parts
        ([0, 1], [[0, 1]] * 4, 1),  # more workers than cores
        ([0, 1, 2, 3], [[0, 1, 2, 3], [3, 4]], 2),  # as a launcher has bound them
    ],
)
def test_workers_that_share_cores_have_no_more_threads_than_there_are_cores(
    mine: list[int], workers: list[list[int]], num_threads: int
) -> None:
    assert count_threads(mine, workers) == num_threads
