"""The client (rank 0): plays the seeded workload open-loop, routes each request, and collects every token.

Open loop: a request is due at its arrival time whatever the system does; how late it was sent is ROUTED - ARRIVED.
With a closed loop the next request is due when one ends. The client has no model and sleeps when idle.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from xpyd.placement import Placement, Role
from xpyd.records import TokenRow
from xpyd.request import Request, Stage, Timeline
from xpyd.router import Router
from xpyd.units import s_to_ns
from xpyd.worker.base import Desk
from xpyd.worker.messages import EndBlock, Failed, Submit, Tokens, pack_prompt

LEAD_NS = 20_000_000  # from "go" to the block's begin: every worker is in its loop by then
IDLE_SLEEP_S = 50e-6


@dataclass(slots=True)
class Flight:
    """A request that was sent and has not ended: where it went and what came back."""

    request: Request
    prefill_rank: int  # an instance's leader, as is
    decode_rank: int  # the same rank when colocated
    timeline: Timeline = field(default_factory=Timeline)


@dataclass(frozen=True)
class Played:
    """What the client saw of a block. ``unfinished`` lists requests that had not ended when it gave up."""

    begin_ns: int
    end_ns: int
    unfinished: tuple[int, ...]
    stopped: bool


class Client:
    """Plays one block. ``should_stop`` is asked between sends: a stop admits nothing more and drains what runs."""

    def __init__(
        self,
        desk: Desk,
        placement: Placement,
        prefill_router: Router,
        decode_router: Router | None,
        vocab_size: int,
        drain_timeout_s: float,
        should_stop: Callable[[], bool],
    ) -> None:
        self._desk = desk
        self._workers = placement.leaders(Role.COLOCATED, Role.PREFILL, Role.DECODE)
        self._prefill_pool = placement.leaders(Role.COLOCATED, Role.PREFILL)
        self._decode_pool = placement.leaders(Role.DECODE)
        self._prefill_router = prefill_router
        self._decode_router = decode_router
        self._vocab_size = vocab_size
        self._drain_timeout_s = drain_timeout_s
        self._should_stop = should_stop
        self._flights: dict[int, Flight] = {}
        self._load: dict[int, int] = dict.fromkeys(self._workers, 0)  # outstanding tokens by rank

    def play(self, requests: Sequence[Request], concurrency: int | None = None) -> Played:
        """Send every request when it is due, then wait for the rest; ``concurrency`` makes the loop closed."""
        prompts = {r.request_id: pack_prompt(r.prompt(self._vocab_size)) for r in requests}
        todo = deque(sorted(requests, key=lambda r: (r.arrival_offset_ns, r.request_id)))
        begin_ns = self._desk.clock.now_ns() + LEAD_NS
        deadline_ns: int | None = None
        stopped = False
        while todo or self._flights:
            now_ns = self._desk.clock.now_ns()
            busy = self._collect()
            stopped = stopped or self._should_stop()
            if stopped:
                todo.clear()
            while todo and self._due(todo[0], begin_ns, now_ns, concurrency):
                request = todo.popleft()
                due_ns = now_ns if concurrency else begin_ns + request.arrival_offset_ns
                self._send(request, prompts.pop(request.request_id), due_ns)
                busy = True
            if todo or busy:
                deadline_ns = None  # patience counts from the last sign of life
            elif deadline_ns is None:
                deadline_ns = now_ns + s_to_ns(self._drain_timeout_s)
            elif now_ns > deadline_ns:
                break
            if not busy:
                self._desk.rows.flush_if_due()
                time.sleep(IDLE_SLEEP_S)
        unfinished = tuple(self._flights)
        for rank in self._workers:
            self._desk.mailbox.send(rank, EndBlock(abort=bool(unfinished)))
        return Played(begin_ns, self._desk.clock.now_ns(), unfinished, stopped)

    def _due(self, request: Request, begin_ns: int, now_ns: int, concurrency: int | None) -> bool:
        if concurrency is not None:
            return now_ns >= begin_ns and len(self._flights) < concurrency
        return now_ns >= begin_ns + request.arrival_offset_ns

    def _send(self, request: Request, prompt: bytes, due_ns: int) -> None:
        prefill = self._pick(self._prefill_router, self._prefill_pool)
        decode = self._pick(self._decode_router, self._decode_pool) if self._decode_router else prefill
        flight = Flight(request, prefill, decode)
        self._flights[request.request_id] = flight
        self._load[prefill] += request.input_len
        self._load[decode] += request.output_len
        peer = decode if self._decode_router else -1
        self._desk.mailbox.send(prefill, Submit(request.request_id, prompt, request.output_len, request.seed, peer))
        self._stamp(flight, Stage.ARRIVED, due_ns)
        self._stamp(flight, Stage.ROUTED, self._desk.clock.now_ns())

    def _pick(self, router: Router, pool: Sequence[int]) -> int:
        return pool[router.route([self._load[rank] for rank in pool])]

    def _collect(self) -> bool:
        busy = False
        for source, message in self._desk.mailbox.poll():
            busy = True
            match message:
                case Tokens():
                    self._take(source, message)
                case Failed():
                    flight = self._flights[message.request_id]
                    self._end(flight, Stage.FAILED, self._desk.clock.now_ns(), message.reason)
                case _:
                    raise AssertionError(f"rank {source} sent {type(message).__name__} to the client")
        return busy

    def _take(self, source: int, message: Tokens) -> None:
        now_ns = self._desk.clock.now_ns()
        for emitted in message.tokens:
            flight = self._flights[emitted.request_id]
            flight.timeline.tokens.append(now_ns)
            if emitted.index == 0:
                self._load[flight.prefill_rank] -= flight.request.input_len
            self._load[flight.decode_rank] -= 1
            self._desk.rows.write(
                TokenRow(
                    block=self._desk.block,
                    request_id=emitted.request_id,
                    index=emitted.index,
                    token_id=emitted.token,
                    t_ns=now_ns,
                    emitted_ns=message.emitted_ns,
                    rank=source,
                    margin=emitted.margin,
                )
            )
            if len(flight.timeline.tokens) == flight.request.output_len:
                self._end(flight, Stage.FINISHED, now_ns)

    def _end(self, flight: Flight, stage: Stage, t_ns: int, reason: str = "") -> None:
        """Stamp the end, and take what was still expected of the request off the loads."""
        self._stamp(flight, stage, t_ns, reason)
        num_tokens = len(flight.timeline.tokens)
        self._load[flight.prefill_rank] -= 0 if num_tokens else flight.request.input_len
        self._load[flight.decode_rank] -= flight.request.output_len - num_tokens
        del self._flights[flight.request.request_id]

    def _stamp(self, flight: Flight, stage: Stage, t_ns: int, reason: str = "") -> None:
        flight.timeline.stages[stage] = t_ns
        self._desk.stamp(flight.request.request_id, stage, t_ns, reason)
