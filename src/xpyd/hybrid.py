"""Hybrid routing: for each request, is it cheaper to stay whole on one rank, or to prefill here and decode there?

Pure: ranks are ints, loads are what the client knows, seconds come from the fitted cost model (``economics.cost``).
A request is given to the way with the lowest cost, in seconds that it spends itself and that others spend because of
it (the marginal social cost of queueing theory: Naor 1969). For a prompt of I tokens and an output of O:

    stay on r:  queue(r) + prefill(r) + (O - 1) gap(r)
                + chunk(I) decodes(r) + (O - 1) decode(1) decodes(r)
    p to d:     queue(p) + prefill(p) + exposed(link) + step(d) / 2 + (O - 1) gap(d) + stall(d)
                + chunk(I) decodes(p) + (O - 1) decode(1) decodes(d)

``queue``: prompts sent there without a token yet. ``gap``: a step of the decodes there and of this one, stretched by
the share of time that prompts to come will take, ``1 / (1 - share)``, and by a full chunk at most. ``stall``: prompts
that still queue at d when the KV lands. ``exposed``: as in ``economics.predict``, for the hand-offs under way to d and
this one. The last line of each is what others lose: every decode beside a chunk waits for it, and every decode beside
another lengthens its steps.

One request cannot see that a rank without any prompts would be worth having: alone, each would rather stay. So a rank
counts as having at least the decodes, and the share of prompts, that it would have in the long run in the better pure
arm, by the closed-form prediction (``expected_loads``): even over all ranks where staying is better, prompts on the one
pool and decodes on the other where splitting is. Around that, length, link and load decide request by request.

Where all ranks are to be alike, a request that stays goes where the colocated arm's router sends it: so the arm differs
from that one by its moves, and by nothing else. Reckoned seconds would choose other ranks than outstanding tokens do,
and were measured to choose worse ones (docs/hybrid.md).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from math import inf
from typing import Annotated, Literal

from annotated_types import Ge

from xpyd.economics.batch import DecodeBatch
from xpyd.economics.cost import ComputeModel, LinkModel, effective_transfer_s
from xpyd.economics.predict import colocated_batch, predict, split_batch, stolen_s
from xpyd.economics.prompt_cost import PromptCost, prompt_cost
from xpyd.economics.scenario import Calibration, RequestClass, Scenario
from xpyd.records import DecisionRow
from xpyd.request import Request

MAX_SHARE = 0.9  # of a rank's time in prompts: beyond, the closed form of a gap means nothing
MAX_CANDIDATES = 4  # of each pool, the cheapest: all pairs of large pools would take longer than they save


Policy = Literal["off", "cost", "stay", "move"]


@dataclass(frozen=True)
class HybridConfig:
    """The hybrid arm of a comparison. ``stay`` and ``move``: what it degenerates to, all of one kind.

    ``margin``: the share of the cost of staying that a move must save, since moves rest on more that is reckoned.
    """

    policy: Policy = "off"
    margin: Annotated[float, Ge(0)] = 0.05

    @property
    def on(self) -> bool:
        return self.policy != "off"


@dataclass(frozen=True)
class Expected:
    """What a rank holds in the long run: sequences that decode, and the share of its time that prompts take."""

    num_decodes: float
    prefill_share: float


def expected_loads(calibration: Calibration, scenario: Scenario, policy: Policy = "cost") -> tuple[Expected, Expected]:
    """The loads of a prefill rank and of a decode rank in the pure arm that the closed form finds cheaper end to end.

    Where that is the colocated one, both are the same. A ``policy`` that is not ``cost`` names the arm itself.
    """
    compute = calibration.compute.model
    arms = list(predict(calibration, scenario).values())
    colocated, split = (scenario.mean([times[arm].e2e_s for times in arms]) for arm in (0, 1))
    stolen = scenario.mean([stolen_s(compute, scenario, cls) for cls in scenario.classes])
    rate_rps = scenario.rate_rps or (scenario.concurrency or 1) / min(colocated, split)

    def expected(batch: DecodeBatch, prefill_ranks: int) -> Expected:
        return Expected(batch.num_others, min(MAX_SHARE, rate_rps * stolen / prefill_ranks))

    if policy == "stay" or (policy == "cost" and colocated <= split):
        both = expected(colocated_batch(compute, scenario, rate_rps), scenario.num_colocated)
        return both, both
    apart = expected(split_batch(compute, scenario, rate_rps), scenario.num_prefill)
    return Expected(0.0, apart.prefill_share), Expected(apart.num_decodes, 0.0)


@dataclass(frozen=True)
class Reckoning:
    """A way that a request may go, and its cost in seconds; the stages as in ``economics.ledger.ArmTimes``."""

    prefill_rank: int
    decode_rank: int
    queue_s: float
    prefill_s: float
    exposed_transfer_s: float
    admission_s: float
    decode_s: float
    imposed_s: float  # what others lose

    @property
    def moves(self) -> bool:
        return self.prefill_rank != self.decode_rank

    @property
    def own_s(self) -> float:
        """End to end, for the request itself."""
        return self.queue_s + self.prefill_s + self.exposed_transfer_s + self.admission_s + self.decode_s

    @property
    def total_s(self) -> float:
        return self.own_s + self.imposed_s


@dataclass(frozen=True)
class Decision:
    """What was chosen, against the best of the other kind; ``move`` is None where nothing could move."""

    chosen: Reckoning
    stay: Reckoning
    move: Reckoning | None
    reason: str


@dataclass(slots=True)
class RankLoad:
    """What is on a rank, as far as the client knows."""

    prompts: dict[int, float] = field(default_factory=dict)  # seconds of each that has no token yet, in order
    prompts_s: float = 0.0  # of them all
    front_since_s: float = 0.0  # when the first of them can have begun
    decodes: set[int] = field(default_factory=set)  # requests that decode there, or will

    def backlog_s(self, now_s: float) -> float:
        """Seconds until the prompts that are here are computed."""
        if not self.prompts:
            return 0.0
        front_s = next(iter(self.prompts.values()))
        return self.prompts_s - min(front_s, max(0.0, now_s - self.front_since_s))

    def add(self, request_id: int, seconds: float) -> None:
        self.prompts[request_id] = seconds
        self.prompts_s += seconds

    def remove(self, request_id: int) -> bool:
        """Whether the prompt was still here."""
        seconds = self.prompts.pop(request_id, None)
        if seconds is not None:
            self.prompts_s = self.prompts_s - seconds if self.prompts else 0.0
        return seconds is not None


@dataclass(frozen=True, slots=True)
class Ways:
    """What a request would take on each rank that is there, those whose turn it is first.

    ``prompts``: its queue, its prefill, and what the decodes there lose by it; ``decodes``: its decoding, and what the
    others there lose by it.
    """

    cost: PromptCost
    prompts: Mapping[int, tuple[float, float, float]]
    decodes: Mapping[int, tuple[float, float]]

    def stay(self, rank: int) -> Reckoning:
        (queue_s, own_s, stolen_s), (decode_s, beside_s) = self.prompts[rank], self.decodes[rank]
        return Reckoning(rank, rank, queue_s, own_s, 0.0, 0.0, decode_s, stolen_s + beside_s)


class HybridPolicy:
    """Decides, and keeps the loads that it decides by. ``sent``, ``first_token``, ``landed`` and ``ended`` tell it.

    ``pools``: the ranks of the split arm's two pools. A request may stay on any of them; it may move from either pool
    to the other, as those links are connected and timed. No rank waits for itself: a move is not made where it would
    close a ring of ranks that each wait for blocks of the next.
    """

    def __init__(
        self,
        config: HybridConfig,
        calibration: Calibration,
        scenario: Scenario,
        pools: tuple[Collection[int], Collection[int]],
    ) -> None:
        self._config = config
        self._compute: ComputeModel = calibration.compute.model
        self._link: LinkModel = calibration.link.model
        self._delays = calibration.delays
        self._scenario = scenario
        self._pools = pools
        loads = expected_loads(calibration, scenario, config.policy)
        self._expected = {rank: loads[i] for i, pool in enumerate(pools) for rank in pool}
        self._alike = loads[0] == loads[1]
        self._ranks = sorted(self._expected)
        self.loads: Mapping[int, RankLoad] = {rank: RankLoad() for rank in self._ranks}
        self._prompt_costs: dict[int, PromptCost] = {}  # by prompt length
        self._flying: Counter[tuple[int, int]] = Counter()  # moves sent and not landed, by (source, destination)
        context_len = scenario.mean([cls.context_len for cls in scenario.classes])
        self._next = 0  # whose turn it is among equals, as a place among the sorted ranks
        self._seq_s = self._compute.decode_s(1, context_len)
        longest = max(cls.input_len for cls in scenario.classes)
        self._chunk_s = self._compute.chunk_s(min(longest, scenario.chunk_tokens or longest))

    def prepare(self, input_len: int) -> None:
        """Reckon beforehand what a prompt costs whatever the load: a request waits for its decision."""
        self._prompt_cost(input_len)

    def decide(self, input_len: int, output_len: int, present: Collection[int], now_s: float, home: int) -> Decision:
        """Where a request goes. ``present``: ranks that are not lost; ``home``: the colocated arm's choice of them."""
        ways = self.ways(input_len, output_len, present, now_s)
        stays = {rank: ways.stay(rank) for rank in ways.prompts}
        cheapest = min(stays.values(), key=lambda way: way.total_s)
        stay = stays[home] if self._alike else cheapest
        if output_len < 2:
            return Decision(stay, stay, None, "nothing to decode")
        moves = self.moves(ways, now_s)
        if not moves:
            return Decision(stay, stay, None, "no free way to another rank")
        move = min(moves, key=lambda way: way.total_s)
        if self._config.policy != "cost":
            return Decision(move if self._config.policy == "move" else stay, stay, move, "hybrid.policy")
        saved_s = cheapest.total_s - move.total_s
        if saved_s > self._config.margin * cheapest.total_s:
            return Decision(move, stay, move, "moving costs less")
        return Decision(stay, stay, move, "staying costs less" if saved_s <= 0 else "a move saves less than the margin")

    def ways(self, input_len: int, output_len: int, present: Collection[int], now_s: float) -> Ways:
        """What a request of these lengths would take on each rank of ``present``."""
        cost, ranks = self._prompt_cost(input_len), [rank for rank in self._in_turn() if rank in present]
        prompts = {rank: self._prompt(cost, rank, now_s) for rank in ranks}
        cls = RequestClass(1.0, input_len, output_len)
        decode_s = self._compute.decode_s(1, cls.context_len)
        return Ways(cost, prompts, {rank: self._decodes(cls.num_gaps, decode_s, rank) for rank in ranks})

    def moves(self, ways: Ways, now_s: float) -> list[Reckoning]:
        """The moves that may be made, from the cheapest sources to the cheapest destinations."""
        return [self._move(ways, *pair, now_s) for pair in self._pairs(ways)]

    def sent(self, request_id: int, input_len: int, way: Reckoning, now_s: float) -> None:
        source = self.loads[way.prefill_rank]
        if not source.prompts:
            source.front_since_s = now_s
        source.add(request_id, self._prompt_cost(input_len).alone_s)
        self.loads[way.decode_rank].decodes.add(request_id)
        self._next = (self._ranks.index(way.prefill_rank) + 1) % len(self._ranks)
        if way.moves:
            self._flying[way.prefill_rank, way.decode_rank] += 1

    def first_token(self, request_id: int, way: Reckoning, now_s: float) -> None:
        """The prompt is computed; what queues behind it runs from now on."""
        source = self.loads[way.prefill_rank]
        if source.remove(request_id):
            source.front_since_s = now_s

    def landed(self, way: Reckoning) -> None:
        """A request decodes, or has ended: it waits for no blocks any more."""
        if way.moves:
            self._flying[way.prefill_rank, way.decode_rank] -= 1

    def ended(self, request_id: int, way: Reckoning, now_s: float) -> None:
        self.first_token(request_id, way, now_s)
        self.loads[way.decode_rank].decodes.discard(request_id)

    def _prompt_cost(self, input_len: int) -> PromptCost:
        known = self._prompt_costs.get(input_len)
        if known is None:
            known = self._prompt_costs[input_len] = prompt_cost(self._compute, self._scenario, input_len)
        return known

    def _in_turn(self) -> list[int]:
        """All ranks, the one behind the last that got a prompt first: of equals the first is taken."""
        return self._ranks[self._next :] + self._ranks[: self._next]

    def _move(self, ways: Ways, source: int, destination: int, now_s: float) -> Reckoning:
        (queue_s, own_s, stolen_s), (decode_s, beside_s) = ways.prompts[source], ways.decodes[destination]
        cost = ways.cost
        num_flying = sum(count for pair, count in self._flying.items() if pair[1] == destination)
        wire_s = self._link.wire_s(cost.num_bytes, cost.num_pieces, 1 + num_flying)
        exposed_s = effective_transfer_s(self._link.alpha_s, wire_s, cost.num_parts, cost.window_s)
        exposed_s += self._delays.leave_s
        admission_s = self._step_s(destination) / 2 + self._delays.admit_s
        ready_s = queue_s + own_s + exposed_s + admission_s
        stall_s = max(0.0, self.loads[destination].backlog_s(now_s) - ready_s)
        imposed_s = stolen_s + beside_s
        return Reckoning(source, destination, queue_s, own_s, exposed_s, admission_s, decode_s + stall_s, imposed_s)

    def _prompt(self, cost: PromptCost, rank: int, now_s: float) -> tuple[float, float, float]:
        """Queue and prefill seconds on a rank, and what the decodes there lose by the prompt."""
        num_decodes = self._num_decodes(rank)
        queue_s = self.loads[rank].backlog_s(now_s) + (self._step_s(rank) / 2 if num_decodes else 0.0)
        return queue_s, cost.prefill_s(num_decodes * self._seq_s), num_decodes * cost.stolen_s

    def _decodes(self, num_gaps: float, decode_s: float, rank: int) -> tuple[float, float]:
        """Seconds that a request decodes on a rank, and what the other decodes there lose by one more beside them.

        ``decode_s``: what it adds to a step.
        """
        num_decodes = self._num_decodes(rank)
        step_s = self._compute.base_s + decode_s + num_decodes * self._seq_s
        gap_s = min(step_s / (1 - self._expected[rank].prefill_share), step_s + self._chunk_s)
        return num_gaps * gap_s, num_gaps * decode_s * num_decodes

    def _num_decodes(self, rank: int) -> float:
        return max(self._expected[rank].num_decodes, len(self.loads[rank].decodes))

    def _step_s(self, rank: int) -> float:
        return self._compute.base_s + self._num_decodes(rank) * self._seq_s

    def _pairs(self, ways: Ways) -> list[tuple[int, int]]:
        """Sources and destinations of moves, those that would close a ring left out."""
        found = []
        one_way = self._config.policy == "move"  # as the split arm does
        for ours, theirs in (self._pools,) if one_way else (self._pools, self._pools[::-1]):
            sources, ends = _cheapest(ways.prompts, ours), _cheapest(ways.decodes, theirs)
            found += [(p, d) for p in sources for d in ends if not self._reaches(d, p)]
        return found

    def _reaches(self, begin: int, end: int) -> bool:
        """Whether moves on their way lead from one rank to another, through any number of ranks between."""
        seen, todo = {begin}, [begin]
        while todo:
            rank = todo.pop()
            nexts = {pair[1] for pair, count in self._flying.items() if count > 0 and pair[0] == rank} - seen
            seen |= nexts
            todo += nexts
        return end in seen


def _cheapest(seconds: Mapping[int, tuple[float, ...]], pool: Collection[int]) -> list[int]:
    """The ranks of a pool on which these add up to least, of equals the first."""
    return sorted((rank for rank in seconds if rank in pool), key=lambda rank: sum(seconds[rank]))[:MAX_CANDIDATES]


def decision_row(block: int, attempt: int, request: Request, decision: Decision) -> DecisionRow:
    """The row of one decision."""
    chosen, move = decision.chosen, decision.move
    return DecisionRow(
        block=block,
        request_id=request.request_id,
        attempt=attempt,
        moves=chosen.moves,
        prefill_rank=chosen.prefill_rank,
        decode_rank=chosen.decode_rank,
        queue_s=chosen.queue_s,
        prefill_s=chosen.prefill_s,
        exposed_transfer_s=chosen.exposed_transfer_s,
        admission_s=chosen.admission_s,
        decode_s=chosen.decode_s,
        imposed_s=chosen.imposed_s,
        stay_s=decision.stay.total_s,
        move_s=move.total_s if move is not None else inf,
        reason=decision.reason,
    )
