"""Least squares with coefficients that cannot be negative, and how well a fit holds.

A cost per byte or per token below zero is nonsense, and clipping it afterwards leaves the others wrong: they were
fitted beside it. Lawson and Hanson's active set method (Solving Least Squares Problems, 1974, chapter 23) solves
the constrained problem itself. A column that others already explain never enters, so it gets 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]
Matrix = NDArray[np.float64]
TOLERANCE = 1e-9  # relative to columns and target of unit length
NUM_REWEIGHTINGS = 20


@dataclass(frozen=True)
class Score:
    """How a model does on some points. Errors are relative, ``predicted / measured - 1``; R2 is on seconds."""

    num_points: int
    rms_error: float
    max_error: float
    r2: float


def score(predicted: Vector, measured: Vector) -> Score:
    """The score of ``predicted`` seconds against ``measured`` ones, both [num_points]; R2 is NaN if all are equal."""
    error = predicted / measured - 1
    spread = float(((measured - measured.mean()) ** 2).sum())
    r2 = 1 - float(((measured - predicted) ** 2).sum()) / spread if spread else float("nan")
    return Score(len(measured), float(np.sqrt((error**2).mean())), float(np.abs(error).max()), r2)


def fit_relative(features: Matrix, seconds: Vector) -> Vector:
    """Coefficients [k] >= 0 with ``features @ coefficients`` near ``seconds``, by relative error; features [n, k].

    Relative, since points span microseconds to seconds: plain least squares would leave the small ones, which alone
    tell a fixed cost, to chance. Errors are weighed by the fitted time (reweighted until it settles), not by the
    measured one, which would believe a lucky point over a stalled one and fit below the mean. Raises ValueError for
    no points or a time that is not above zero.
    """
    if not len(seconds):
        raise ValueError("no points to fit; measure at least one per coefficient")
    if not (np.isfinite(seconds) & (seconds > 0)).all():
        raise ValueError(
            f"a measured time of {seconds.min()} s cannot be fitted; every point must take a positive time"
        )
    expected = seconds
    for _ in range(NUM_REWEIGHTINGS):
        coefficients = nnls(features / expected[:, None], seconds / expected)
        expected = np.maximum(features @ coefficients, seconds.min())  # a fit of zero must not weigh for ever
    return coefficients


def nnls(matrix: Matrix, target: Vector) -> Vector:
    """``argmin |matrix @ x - target|`` over x >= 0; matrix [n, k], target [n], x [k]."""
    lengths = np.linalg.norm(matrix, axis=0)
    scale = np.where(lengths > 0, lengths, 1.0)
    unit = matrix / scale
    x = np.zeros(matrix.shape[1])
    passive = np.zeros(matrix.shape[1], dtype=bool)
    tolerance = TOLERANCE * float(np.linalg.norm(target))
    for _ in range(3 * matrix.shape[1]):  # each round lowers the residual; the bound only guards against rounding
        slope = unit.T @ (target - unit @ x)
        slope[passive] = -np.inf
        best = int(np.argmax(slope))
        if slope[best] <= tolerance:
            break
        passive[best] = True
        x = _feasible(unit, target, x, passive)
    return np.asarray(x / scale, dtype=np.float64)


def _feasible(unit: Matrix, target: Vector, x: Vector, passive: NDArray[np.bool_]) -> Vector:
    """Solve on the passive columns; while one turns negative, step only to where it hits zero and drop it."""
    while passive.any():
        solved = np.zeros_like(x)
        solved[passive] = np.linalg.lstsq(unit[:, passive], target, rcond=None)[0]
        negative = passive & (solved < 0)
        if not negative.any():
            return solved
        step = (x[negative] / (x[negative] - solved[negative])).min()
        x = x + step * (solved - x)
        passive &= x > TOLERANCE * max(1.0, float(x.max()))
        x = np.where(passive, x, 0.0)
    return np.zeros_like(x)
