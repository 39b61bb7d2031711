"""Cores are divided equally, and shared only where there are too few."""

from __future__ import annotations

from xpyd.worker.affinity import divide_cores


def test_equal_shares() -> None:
    assert divide_cores([0, 1, 2, 3, 4], 2) == [[0, 1], [2, 3]]


def test_too_few_cores_are_shared_by_all() -> None:
    assert divide_cores([0, 1], 3) == [[0, 1]] * 3
