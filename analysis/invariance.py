"""Output invariance: both arms must give the same tokens for the same request; a null control says what rounding does.

A divergence is "within rounding" only where the two best logits were closer than ``ROUNDING_MARGIN`` at the first
token that differs; tokens after it follow another path and say nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import Run
from analysis.tokens import Tokens
from xpyd.metrics import places, stretches

ROUNDING_MARGIN = 1e-3
PAIR_KEY = ["pair", "request_id"]


@dataclass(frozen=True)
class Invariance:
    """Requests that finished in both arms, by what their tokens say. ``divergences``: one row per one that differs."""

    arms: tuple[str, str]
    num_compared: int
    num_rounding: int
    num_different: int
    divergences: pd.DataFrame  # pair, request_id, index, token_first, token_second, margin, within_rounding

    @property
    def num_equal(self) -> int:
        return self.num_compared - self.num_rounding - self.num_different

    @property
    def finding(self) -> str:
        if not self.num_compared:
            return "nothing to compare"
        if self.num_different:
            return "DIFFERENT"
        return "same within rounding" if self.num_rounding else "same"


def check_invariance(run: Run, frame: pd.DataFrame, tokens: Tokens, first: str, second: str) -> Invariance:
    """Compare the tokens of two arms, request by request; ``frame`` is the run's request frame, ``tokens`` its own."""
    ours, theirs = _finished_in_both(frame, first, second)
    index = _first_difference(run, tokens, ours, theirs)
    differ = index >= 0
    index, ours, theirs, num_compared = index[differ], ours[differ], theirs[differ], len(ours)
    (token_first, margin_first), (token_second, margin_second) = (
        [_cells(run.tables["tokens"][column], tokens, rows, index) for column in ("token_id", "margin")]
        for rows in (ours, theirs)
    )
    divergences = pd.DataFrame(
        {
            "pair": frame["pair"].to_numpy()[ours],
            "request_id": frame["request_id"].to_numpy()[ours],
            "index": index,
            "token_first": token_first,
            "token_second": token_second,
            "margin": np.minimum(margin_first, margin_second),
        }
    )
    divergences["within_rounding"] = divergences["margin"] < ROUNDING_MARGIN  # NaN, a missing token: never rounding
    num_rounding = int(divergences["within_rounding"].sum())
    return Invariance((first, second), num_compared, num_rounding, len(divergences) - num_rounding, divergences)


def _finished_in_both(frame: pd.DataFrame, first: str, second: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """The rows of the requests that finished in both arms, by pair and request, one array per arm."""
    finished = frame.loc[frame["status"] == "finished", [*PAIR_KEY, "arm"]].rename_axis("row").reset_index()
    both = finished[finished["arm"] == first].merge(
        finished[finished["arm"] == second], on=PAIR_KEY, suffixes=("_first", "_second")
    )
    both = both.sort_values(PAIR_KEY)
    return both["row_first"].to_numpy(dtype=np.int64), both["row_second"].to_numpy(dtype=np.int64)


def _first_difference(
    run: Run, tokens: Tokens, ours: NDArray[np.int64], theirs: NDArray[np.int64]
) -> NDArray[np.int64]:
    """The index of the first token that differs, or that one arm lacks; -1 where none does."""
    token_id = run.tables["tokens"]["token_id"].to_numpy()
    shared = np.minimum(tokens.counts[ours], tokens.counts[theirs])
    found = np.where(tokens.counts[ours] == tokens.counts[theirs], -1, shared)
    for first, last in stretches(np.concatenate(([0], np.cumsum(shared)))):
        counts, ends = shared[first:last], np.cumsum(shared[first:last])
        a, b = (token_id[tokens.order[places(tokens.starts[rows[first:last]], counts)]] for rows in (ours, theirs))
        differing = np.flatnonzero(a != b)
        request, where = np.unique(np.searchsorted(ends, differing, side="right"), return_index=True)
        found[first + request] = differing[where] - (ends - counts)[request]
    return found


def _cells(
    column: pd.Series, tokens: Tokens, requests: NDArray[np.int64], index: NDArray[np.int64]
) -> NDArray[np.float64]:
    """The column at token ``index[i]`` of ``requests[i]``; NaN where the request has no such token."""
    there = index < tokens.counts[requests]
    found = np.full(len(index), np.nan)
    found[there] = column.to_numpy()[tokens.order[(tokens.starts[requests] + index)[there]]]
    return found
