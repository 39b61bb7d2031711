"""Which ranks a request is given to, and the loads by which that is decided.

Pure: the client tells of what it sends and of every token that comes, ranks are ints, and time is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from xpyd.hybrid import Decision, HybridPolicy
from xpyd.placement import Role
from xpyd.request import Request
from xpyd.router import Router

Pool = Callable[..., Sequence[int]]  # the leaders of the instances of some roles that have all their ranks


@dataclass(frozen=True)
class Way:
    """The leader that computes a request's prompt, and the one that decodes it; the same where it does not move."""

    prefill_rank: int
    decode_rank: int
    decision: Decision | None = None  # where it was reckoned

    @property
    def peer(self) -> int:
        """The rank that the KV goes to; -1: none."""
        return self.decode_rank if self.decode_rank != self.prefill_rank else -1


class Dispatch(Protocol):
    """``sent`` follows ``route``; then ``token`` for the ``num_seen``-th token of this attempt, and ``ended`` once."""

    def route(self, request: Request, pool: Pool, now_s: float) -> Way: ...

    def sent(self, request: Request, way: Way, now_s: float) -> None: ...

    def token(self, request: Request, way: Way, num_seen: int, now_s: float) -> None: ...

    def ended(self, request: Request, way: Way, num_seen: int, now_s: float) -> None: ...


class PoolDispatch:
    """A router for each pool: one pool of colocated instances, or one of prefill and one of decode instances."""

    def __init__(self, prefill_router: Router, decode_router: Router | None) -> None:
        self._prefill_router = prefill_router
        self._decode_router = decode_router
        self._load: dict[int, int] = {}  # outstanding tokens by rank

    def route(self, request: Request, pool: Pool, now_s: float) -> Way:
        prefill = self._pick(self._prefill_router, pool(Role.COLOCATED, Role.PREFILL))
        if self._decode_router is None:
            return Way(prefill, prefill)
        return Way(prefill, self._pick(self._decode_router, pool(Role.DECODE)))

    def sent(self, request: Request, way: Way, now_s: float) -> None:
        self._add(way.prefill_rank, request.input_len)
        self._add(way.decode_rank, request.output_len)

    def token(self, request: Request, way: Way, num_seen: int, now_s: float) -> None:
        if num_seen == 1:
            self._add(way.prefill_rank, -request.input_len)
        self._add(way.decode_rank, -1)

    def ended(self, request: Request, way: Way, num_seen: int, now_s: float) -> None:
        self._add(way.prefill_rank, 0 if num_seen else -request.input_len)
        self._add(way.decode_rank, num_seen - request.output_len)

    def _add(self, rank: int, num_tokens: int) -> None:
        self._load[rank] = self._load.get(rank, 0) + num_tokens

    def _pick(self, router: Router, ranks: Sequence[int]) -> int:
        return ranks[router.route([self._load.get(rank, 0) for rank in ranks])]


class HybridDispatch:
    """Every rank prefills and decodes; the policy says for each request whether it moves."""

    def __init__(self, policy: HybridPolicy) -> None:
        self._policy = policy

    def route(self, request: Request, pool: Pool, now_s: float) -> Way:
        decision = self._policy.decide(request.input_len, request.output_len, pool(Role.HYBRID), now_s)
        return Way(decision.chosen.prefill_rank, decision.chosen.decode_rank, decision)

    def sent(self, request: Request, way: Way, now_s: float) -> None:
        assert way.decision is not None
        self._policy.sent(request.request_id, request.input_len, way.decision.chosen, now_s)

    def token(self, request: Request, way: Way, num_seen: int, now_s: float) -> None:
        assert way.decision is not None
        if num_seen == 1:
            self._policy.first_token(request.request_id, way.decision.chosen, now_s)
        elif num_seen == 2:  # the first that its decode rank made
            self._policy.landed(way.decision.chosen)

    def ended(self, request: Request, way: Way, num_seen: int, now_s: float) -> None:
        assert way.decision is not None
        if num_seen < 2:
            self._policy.landed(way.decision.chosen)
        self._policy.ended(request.request_id, way.decision.chosen, now_s)
