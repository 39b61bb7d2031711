"""Tokens and gaps in request order, as plain arrays: what tens of millions of rows need to be read in seconds.

A request is named by its row in the run's table of requests; its tokens lie together. Nothing is sorted where the log
is whole: a token's place follows from its request and its index.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from analysis.load import Run
from xpyd import metrics

KEY = ["block", "request_id"]


@dataclass(frozen=True)
class Tokens:
    """Those of request r are entries ``[starts[r], starts[r + 1])``, in order of their index.

    ``order`` [num_tokens] is each token's row in the run's table; ``at_ns`` [num_tokens] is when the client had it,
    from the first stamp of its block, NaN where that block has none. ``starts`` has shape [num_requests + 1].
    """

    starts: NDArray[np.int64]
    order: NDArray[np.int32]
    at_ns: NDArray[np.float64]

    @property
    def counts(self) -> NDArray[np.int64]:
        """Tokens of each request, shape [num_requests]."""
        return np.diff(self.starts)

    @cached_property
    def gaps(self) -> metrics.Gaps:
        """Between the tokens of each request."""
        return metrics.gaps_by_request(self.starts, self.at_ns)

    def gap_ends_ns(self, requests: NDArray[np.int64]) -> NDArray[np.float64]:
        """The later stamp of each gap that ``gaps.of(requests)`` gives."""
        counts = np.maximum(self.counts[requests] - 1, 0)
        return self.at_ns[metrics.places(self.starts[requests] + 1, counts)]


def order_tokens(run: Run) -> Tokens:
    """All tokens of offered requests, in request order."""
    starts, order = _in_request_order(run.tables["requests"], run.tables["tokens"])
    return Tokens(starts, order, _since_begin_ns(run, starts, order))


def _in_request_order(requests: pd.DataFrame, table: pd.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.int32]]:
    """``Tokens.starts`` and ``Tokens.order``."""
    request = _request_of(requests, table)
    counts = np.zeros(len(requests) + 1, dtype=np.int64)
    for part in _parts(len(request)):
        counts += np.bincount(request[part], minlength=len(counts))
    starts = np.concatenate(([0], np.cumsum(counts[:-1])))
    return starts, _order(request, table["index"].to_numpy(), starts)


def _parts(num_rows: int) -> Iterator[slice]:
    return (slice(begin, min(begin + metrics.PART, num_rows)) for begin in range(0, num_rows, metrics.PART))


def _request_of(requests: pd.DataFrame, table: pd.DataFrame) -> NDArray[np.int32]:
    """The request (row) of each token; ``len(requests)`` for one that was never offered."""
    width = max((int(frame["request_id"].max()) + 1 for frame in (requests, table) if len(frame)), default=1)
    offered = pd.Index(requests["block"].to_numpy() * width + requests["request_id"].to_numpy())
    block, request_id = table["block"].to_numpy(), table["request_id"].to_numpy()
    found = np.empty(len(table), dtype=np.int32)
    for part in _parts(len(table)):
        found[part] = offered.get_indexer(block[part] * width + request_id[part])
    found[found < 0] = len(requests)
    return found


def _order(request: NDArray[np.int32], index: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int32]:
    """The rows of the table in request order, those without a request left out."""
    if len(request) > starts[-1]:
        rows = np.flatnonzero(request < len(starts) - 1).astype(np.int32)
        return rows[_order(request[rows], index[rows], starts)]
    order = np.full(len(request), -1, dtype=np.int32)
    for part in _parts(len(request)):
        place = starts[request[part]] + index[part]
        if index[part].min() < 0 or place.max() >= len(order):
            break
        order[place] = np.arange(part.start, part.stop)
    if (order >= 0).all():  # each place is taken once, so no request has a token in another's
        return order
    # Tokens are missing or twice there: their places are not their indices.
    return np.lexsort((index, request)).astype(np.int32)


def _since_begin_ns(run: Run, starts: NDArray[np.int64], order: NDArray[np.int32]) -> NDArray[np.float64]:
    """``Tokens.at_ns``. Subtracted as integers: a float would round such stamps."""
    origins = run.tables["requests"]["block"].map(run.tables["stages"].groupby("block")["t_ns"].min())
    begin_ns, counts = origins.fillna(0).to_numpy(dtype=np.int64), np.diff(starts)
    t_ns = run.tables["tokens"]["t_ns"].to_numpy()
    found = np.empty(len(order))
    for first, last in metrics.stretches(starts):
        own = slice(starts[first], starts[last])
        found[own] = t_ns[order[own]] - np.repeat(begin_ns[first:last], counts[first:last])
    if origins.isna().any():
        found[np.repeat(origins.isna().to_numpy(), counts)] = np.nan
    return found
