"""The client (rank 0): plays the seeded workload open-loop, routes each request, and collects every token.

Open loop: a request is due at its arrival time whatever the system does; how late it was sent is ROUTED - ARRIVED.
With a closed loop the next request is due when one ends. The client has no model and sleeps when idle.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf

from xpyd.dispatch import Dispatch
from xpyd.faults import FaultConfig
from xpyd.hybrid import decision_row
from xpyd.placement import Placement, Role
from xpyd.records import TokenRow
from xpyd.request import Request, Stage
from xpyd.units import s_to_ns
from xpyd.worker.desk import Desk
from xpyd.worker.messages import Beat, Cancelled, EndBlock, Failed, PeerLost, Submit, Tokens, pack_prompt
from xpyd.worker.pace import Pace
from xpyd.worker.rescue import Flight, Rescue

LEAD_NS = 20_000_000  # from "go" to the block's begin: every worker is in its loop by then


@dataclass(frozen=True)
class Played:
    """What the client saw of a block. ``unfinished`` lists requests that had not ended when it gave up.

    ``times`` (ns): by request id, when it was due, then when each of its tokens came, in the order of coming.
    """

    begin_ns: int
    end_ns: int
    unfinished: tuple[int, ...]
    stopped: bool
    num_failed: int = 0
    times: Mapping[int, Sequence[int]] = field(default_factory=dict)


class Client:
    """Plays one block. ``should_stop`` is asked between sends: a stop admits nothing more and drains what runs."""

    def __init__(
        self,
        desk: Desk,
        placement: Placement,
        dispatch: Dispatch,
        vocab_size: int,
        drain_timeout_s: float,
        should_stop: Callable[[], bool],
        faults: FaultConfig,
        lost: dict[int, str],
    ) -> None:
        """``lost``: ranks that are lost, and why; this block may add some."""
        self._desk = desk
        self._rescue = Rescue(desk, placement, faults, lost)
        self._dispatch = dispatch
        self._vocab_size = vocab_size
        self._drain_timeout_s = drain_timeout_s
        self._should_stop = should_stop
        self._flights: dict[int, Flight] = {}
        self._times: dict[int, list[int]] = {}
        self._num_failed = 0
        self._pace = Pace()

    def play(self, requests: Sequence[Request], concurrency: int | None = None) -> Played:
        """Send every request when it is due, then wait for the rest; ``concurrency`` makes the loop closed."""
        try:
            return self._play(requests, concurrency)
        except BaseException as error:
            self._fail_all(f"cut off: {type(error).__name__} at the client")
            raise

    @property
    def verdict(self) -> str:
        """Why the block ends early, or the run after it; empty where they go on."""
        return self._rescue.verdict

    def attend(self) -> None:
        """With no request under way: watch the workers, and let them hear of the client."""
        self._collect()
        self._rescue.tend({})

    def _play(self, requests: Sequence[Request], concurrency: int | None) -> Played:
        prompts = self._prepare(requests)
        todo = deque(sorted(requests, key=lambda r: (r.arrival_offset_ns, r.request_id)))
        begin_ns = self._desk.clock.now_ns() + LEAD_NS
        deadline_ns: int | None = None
        stopped = False
        while todo or self._flights:
            now_ns = self._desk.clock.now_ns()
            busy = self._collect()
            self._rescue_flights()
            if self.verdict:
                self._give_up(todo, begin_ns)
                break
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
                time.sleep(self._pace.sleep_s(self._until_due_s(todo, begin_ns, concurrency)))
        unfinished = tuple(self._flights)
        end = EndBlock(abort=bool(unfinished or self.verdict))
        self._desk.mailbox.send_all(self._rescue.pool(*Role), end)
        end_ns = self._desk.clock.now_ns()
        return Played(begin_ns, end_ns, unfinished, stopped, self._num_failed, self._times)

    def _prepare(self, requests: Sequence[Request]) -> dict[int, bytes]:
        """Their prompts. Of a long trace this takes longer than ``faults.detect_s``: be heard meanwhile."""
        prompts = {}
        for request in requests:
            prompts[request.request_id] = pack_prompt(request.prompt(self._vocab_size))
            self._dispatch.prepare(request)
            self.attend()
        return prompts

    def _due(self, request: Request, begin_ns: int, now_ns: int, concurrency: int | None) -> bool:
        if concurrency is not None:
            return now_ns >= begin_ns and len(self._flights) < concurrency
        return now_ns >= begin_ns + request.arrival_offset_ns

    def _until_due_s(self, todo: Sequence[Request], begin_ns: int, concurrency: int | None) -> float:
        """What is left until a request has to leave, whatever comes in before that."""
        if not todo or concurrency is not None:
            return inf
        return (begin_ns + todo[0].arrival_offset_ns - self._desk.clock.now_ns()) / 1e9

    def _send(self, request: Request, prompt: bytes, due_ns: int) -> None:
        now_s = time.monotonic()
        flight = Flight(request, prompt, self._dispatch.route(request, self._rescue.pool, now_s), now_s)
        self._flights[request.request_id] = flight
        self._times[request.request_id] = [due_ns]
        self._submit(flight)
        self._stamp(flight, Stage.ARRIVED, due_ns)
        self._stamp(flight, Stage.ROUTED, self._desk.clock.now_ns())

    def _submit(self, flight: Flight) -> None:
        r, way = flight.request, flight.way
        submit = Submit(r.request_id, flight.prompt, r.output_len, r.seed, way.peer, flight.attempt, r.priority)
        self._desk.mailbox.send(way.prefill_rank, submit)
        self._dispatch.sent(r, way, time.monotonic())  # once it is on its way: it does not wait for our books
        if way.decision is not None:
            self._desk.rows.write(decision_row(self._desk.block, flight.attempt, r, way.decision))

    def _collect(self) -> bool:
        busy = False
        for source, message in self._desk.mailbox.poll():
            if not self._rescue.heard(source):
                continue
            match message:
                case Beat():
                    continue
                case PeerLost():
                    self._rescue.suspect(message.peer, message.reason)
                case Tokens():
                    self._pace.heard(source, message.emitted_ns)
                    self._take(source, message)
                case Failed() if message.request_id in self._flights:
                    self._rescue.fail(self._flights[message.request_id], message.reason)
                case Cancelled() if message.request_id in self._flights:
                    self._rescue.cancelled(self._flights[message.request_id], source, message)
                case Failed() | Cancelled():
                    pass  # of a request that has ended
                case _:
                    raise AssertionError(f"rank {source} sent {type(message).__name__} to the client")
            busy = True
        return busy

    def _rescue_flights(self) -> None:
        """What was cancelled, and is nowhere any more, is routed anew or fails."""
        for flight in self._rescue.tend(self._flights):
            undoing = flight.undoing
            assert undoing is not None
            reason = "; ".join([undoing.reason, *undoing.stages])
            now_ns = self._desk.clock.now_ns()
            if not undoing.retry or self.verdict:
                self._end(flight, Stage.FAILED, now_ns, reason)
                continue
            self._unload(flight)
            flight.undoing, flight.num_seen, flight.attempt = None, 0, flight.attempt + 1
            flight.way = self._dispatch.route(flight.request, self._rescue.pool, time.monotonic())
            self._stamp(flight, Stage.RETRIED, now_ns, reason)
            self._submit(flight)

    def _give_up(self, todo: deque[Request], begin_ns: int) -> None:
        """The block ends early: everything sent fails, and so does everything that was not sent yet."""
        self._fail_all(self.verdict)
        for request in todo:
            now_ns = self._desk.clock.now_ns()
            self._desk.stamp(request.request_id, Stage.ARRIVED, min(now_ns, begin_ns + request.arrival_offset_ns))
            self._desk.stamp(request.request_id, Stage.FAILED, now_ns, f"not sent: {self.verdict}")
        todo.clear()

    def _fail_all(self, reason: str) -> None:
        for flight in list(self._flights.values()):
            where = " and ".join(self._rescue.name(rank) for rank in sorted(flight.ranks))
            came = f"{len(flight.indices)} of {flight.request.output_len} tokens came"
            self._end(flight, Stage.FAILED, self._desk.clock.now_ns(), f"{reason}; it was at {where}, {came}")
        self._desk.rows.flush()

    def _take(self, source: int, message: Tokens) -> None:
        now_ns, emitted_ns = self._desk.clock.now_ns(), message.emitted_ns
        for emitted in message.tokens:
            flight = self._flights.get(emitted.request_id)
            if flight is None or flight.undoing is not None:  # it was cancelled while this was under way
                continue
            flight.num_seen += 1
            self._dispatch.token(flight.request, flight.way, flight.num_seen, time.monotonic())
            if emitted.index in flight.indices:
                continue  # an earlier attempt had come so far
            self._times[emitted.request_id].append(now_ns)
            flight.indices.add(emitted.index)  # not a count: token 1 can overtake token 0, which another rank sends
            self._desk.rows.write(
                TokenRow(
                    block=self._desk.block,
                    request_id=emitted.request_id,
                    index=emitted.index,
                    token_id=emitted.token,
                    t_ns=now_ns,
                    emitted_ns=emitted_ns,
                    rank=source,
                    margin=emitted.margin,
                )
            )
            if len(flight.indices) == flight.request.output_len:
                self._end(flight, Stage.FINISHED, now_ns)

    def _end(self, flight: Flight, stage: Stage, t_ns: int, reason: str = "") -> None:
        """Stamp the end, and take what was still expected of the request off the loads."""
        self._stamp(flight, stage, t_ns, reason)
        self._num_failed += stage is Stage.FAILED
        self._unload(flight)
        del self._flights[flight.request.request_id]

    def _unload(self, flight: Flight) -> None:
        self._dispatch.ended(flight.request, flight.way, flight.num_seen, time.monotonic())

    def _stamp(self, flight: Flight, stage: Stage, t_ns: int, reason: str = "") -> None:
        self._desk.stamp(flight.request.request_id, stage, t_ns, reason)
