"""Why a session cannot go on, at a worker or at the client."""

from __future__ import annotations


class WorkerError(RuntimeError):
    """A worker cannot go on; the message names rank, peer, request and stage."""
