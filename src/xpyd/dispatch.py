"""Which ranks a request is given to, and the loads by which that is decided.

Pure: the client tells of what it sends and of every token that comes, ranks are ints, and time is the caller's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol

from xpyd.hybrid import Decision, HybridPolicy
from xpyd.kv.entries import block_keys
from xpyd.placement import Role
from xpyd.request import Request
from xpyd.router import Router, SentBlocks

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
    """``sent`` follows ``route``; then ``token`` for the ``num_seen``-th token of this attempt, and ``ended`` once.

    ``prepare`` is told beforehand of each that will come: what can be found out by then delays no request.
    """

    def prepare(self, request: Request) -> None: ...

    def route(self, request: Request, pool: Pool, now_s: float) -> Way: ...

    def sent(self, request: Request, way: Way, now_s: float) -> None: ...

    def token(self, request: Request, way: Way, num_seen: int, now_s: float) -> None: ...

    def ended(self, request: Request, way: Way, num_seen: int, now_s: float) -> None: ...


class KvMap:
    """What the client knows of where KV is: the blocks it sent where, and which ranks share a node.

    ``num_blocks``: of each rank's prefix cache; 0: there is none, and only the links count.
    """

    def __init__(self, vocab_size: int, block_size: int, num_blocks: int, nodes: Sequence[str]) -> None:
        self._vocab_size = vocab_size
        self._block_size = block_size
        self._blocks = SentBlocks(num_blocks)
        self._nodes = nodes
        self._keys: dict[int, list[bytes]] = {}  # of the full blocks of each request that was not sent yet

    def prepare(self, request: Request) -> None:
        self._keys_of(request)

    def to_compute(self, request: Request, ranks: Sequence[int]) -> list[int]:
        """Prompt tokens that each rank would have to compute."""
        keys = self._keys_of(request)
        return [request.input_len - self._blocks.num_hits(rank, keys) * self._block_size for rank in ranks]

    def to_move(self, request: Request, source: int, ranks: Sequence[int]) -> list[int]:
        """Prompt tokens whose KV each rank would have to get from another node; inside a node the link is no matter."""
        near = [self._nodes[rank] == self._nodes[source] for rank in ranks]
        missing = self.to_compute(request, ranks)
        return [0 if is_near else num_tokens for is_near, num_tokens in zip(near, missing, strict=True)]

    def sent(self, request: Request, ranks: Collection[int]) -> None:
        """Its prompt's full blocks will be on these ranks."""
        keys = self._keys_of(request)
        for rank in ranks:
            self._blocks.sent(rank, keys)
        del self._keys[request.request_id]  # of a retry they are made again

    def _keys_of(self, request: Request) -> list[bytes]:
        known = self._keys.get(request.request_id)
        if known is None:
            known = block_keys(request.prompt(self._vocab_size).tolist(), self._block_size, [])
            self._keys[request.request_id] = known
        return known


class PoolDispatch:
    """A router for each pool: one of instances that do both, or one of prefill and one of decode instances."""

    def __init__(self, prefill_router: Router, decode_router: Router | None, kv_map: KvMap | None = None) -> None:
        """``kv_map`` for routers that see where KV is."""
        self._prefill_router = prefill_router
        self._decode_router = decode_router
        self._kv_map = kv_map
        self._load: dict[int, int] = {}  # outstanding tokens by rank
        self._prompts: dict[int, int] = {}  # of them, those of each prompt without a token yet: what is to be computed

    def prepare(self, request: Request) -> None:
        if self._kv_map is not None:
            self._kv_map.prepare(request)

    def route(self, request: Request, pool: Pool, now_s: float) -> Way:
        ranks = pool(Role.COLOCATED, Role.PREFILL, Role.HYBRID)
        missing = self._kv_map.to_compute(request, ranks) if self._kv_map is not None else ()
        prefill = self._pick(self._prefill_router, ranks, missing)
        if self._decode_router is None:
            return Way(prefill, prefill)
        ranks = pool(Role.DECODE)
        missing = self._kv_map.to_move(request, prefill, ranks) if self._kv_map is not None else ()
        return Way(prefill, self._pick(self._decode_router, ranks, missing))

    def sent(self, request: Request, way: Way, now_s: float) -> None:
        num_tokens = request.input_len
        if self._kv_map is not None:
            (num_tokens,) = self._kv_map.to_compute(request, [way.prefill_rank])
            self._kv_map.sent(request, {way.prefill_rank, way.decode_rank})
        self._prompts[request.request_id] = num_tokens
        self._add(way.prefill_rank, num_tokens)
        self._add(way.decode_rank, request.output_len)

    def token(self, request: Request, way: Way, num_seen: int, now_s: float) -> None:
        self._add(way.prefill_rank, -self._prompts.pop(request.request_id, 0))
        self._add(way.decode_rank, -1)

    def ended(self, request: Request, way: Way, num_seen: int, now_s: float) -> None:
        self._add(way.prefill_rank, -self._prompts.pop(request.request_id, 0))
        self._add(way.decode_rank, num_seen - request.output_len)

    def _add(self, rank: int, num_tokens: int) -> None:
        self._load[rank] = self._load.get(rank, 0) + num_tokens

    def _pick(self, router: Router, ranks: Sequence[int], missing: Sequence[int]) -> int:
        return ranks[router.route([self._load.get(rank, 0) for rank in ranks], missing)]


class HybridDispatch:
    """Every rank prefills and decodes; the policy says for each request whether it moves.

    ``colocated``: routes as the colocated arm does, by the loads that are on the ranks here.
    """

    def __init__(self, policy: HybridPolicy, colocated: PoolDispatch) -> None:
        self._policy = policy
        self._colocated = colocated

    def prepare(self, request: Request) -> None:
        self._colocated.prepare(request)
        self._policy.prepare(request.input_len)

    def route(self, request: Request, pool: Pool, now_s: float) -> Way:
        home = self._colocated.route(request, pool, now_s).prefill_rank
        decision = self._policy.decide(request.input_len, request.output_len, pool(Role.HYBRID), now_s, home)
        return Way(decision.chosen.prefill_rank, decision.chosen.decode_rank, decision)

    def sent(self, request: Request, way: Way, now_s: float) -> None:
        assert way.decision is not None
        self._colocated.sent(request, way, now_s)
        self._policy.sent(request.request_id, request.input_len, way.decision.chosen, now_s)

    def token(self, request: Request, way: Way, num_seen: int, now_s: float) -> None:
        assert way.decision is not None
        self._colocated.token(request, way, num_seen, now_s)
        if num_seen == 1:
            self._policy.first_token(request.request_id, way.decision.chosen, now_s)
        elif num_seen == 2:  # the first that its decode rank made
            self._policy.landed(way.decision.chosen)

    def ended(self, request: Request, way: Way, num_seen: int, now_s: float) -> None:
        assert way.decision is not None
        self._colocated.ended(request, way, num_seen, now_s)
        if num_seen < 2:
            self._policy.landed(way.decision.chosen)
        self._policy.ended(request.request_id, way.decision.chosen, now_s)
