"""Tokens and gaps in request order, as plain arrays: what tens of millions of rows need to be read in seconds.

A request is named by its row in the run's table of requests; its tokens lie together. Nothing is sorted where the log
is whole: a token's place follows from its request and its index.
"""

from __future__ import annotations

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
    order: NDArray[np.int64]
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
    requests, table = run.tables["requests"], run.tables["tokens"]
    request = _request_of(requests, table)
    counts = np.bincount(request[request >= 0], minlength=len(requests))
    starts = np.concatenate(([0], np.cumsum(counts)))
    order = _order(request, table["index"].to_numpy(), starts)
    origins = requests["block"].map(run.tables["stages"].groupby("block")["t_ns"].min())
    since_ns = table["t_ns"].to_numpy()[order]
    since_ns -= np.repeat(origins.fillna(0).to_numpy(dtype=np.int64), counts)  # int64: a float would round such stamps
    at_ns = since_ns.astype(np.float64)
    if origins.isna().any():
        at_ns[np.repeat(origins.isna().to_numpy(), counts)] = np.nan
    return Tokens(starts, order, at_ns)


def _request_of(requests: pd.DataFrame, table: pd.DataFrame) -> NDArray[np.int64]:
    """The request (row) of each token; -1 for one that was never offered."""
    width = max((int(frame["request_id"].max()) + 1 for frame in (requests, table) if len(frame)), default=1)
    offered, owner = (frame["block"].to_numpy() * width + frame["request_id"].to_numpy() for frame in (requests, table))
    return np.asarray(pd.Index(offered).get_indexer(owner), dtype=np.int64)


def _order(request: NDArray[np.int64], index: NDArray[np.int64], starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """The rows of the table in request order, those without a request left out."""
    rows = np.arange(len(request))
    if len(request) and request.min() < 0:
        rows = np.flatnonzero(request >= 0)
        request, index = request[rows], index[rows]
    place = starts[request] + index
    order = np.full(len(rows), -1, dtype=np.int64)
    if (place < starts[request + 1]).all():
        order[place] = rows
    if (order >= 0).all():
        return order
    return rows[np.lexsort((index, request))]  # tokens are missing or twice there: their places are not their indices
