"""How far two rows of logits are apart: what a lossy codec does to the next token. Numpy only.

Logits are [num_sequences, vocab_size]; every result is one number per sequence.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

Rows = NDArray[np.float64]


def kl_nats(exact: NDArray[Any], coded: NDArray[Any]) -> Rows:
    """Kullback-Leibler divergence ``sum p * (log p - log q)`` of the softmaxes, p of ``exact``; in nats, never below 0.

    Tokens of probability 0 add nothing.
    """
    log_p, log_q = (log_softmax(each.astype(np.float64), axis=-1) for each in (exact, coded))
    p = np.exp(log_p)
    terms = np.zeros_like(p)
    np.multiply(p, log_p - log_q, out=terms, where=p > 0)
    found: Rows = np.maximum(terms.sum(axis=-1), 0.0)
    return found


def logit_errors(exact: NDArray[Any], coded: NDArray[Any]) -> tuple[Rows, Rows]:
    """The largest and the mean absolute difference."""
    error = np.abs(exact.astype(np.float64) - coded.astype(np.float64))
    return error.max(axis=-1), error.mean(axis=-1)


def margins(logits: NDArray[Any]) -> Rows:
    """The gap between the two largest logits: what an error must exceed to change a greedy token."""
    top = np.partition(logits.astype(np.float64), -2, axis=-1)[:, -2:]
    return top[:, 1] - top[:, 0]
