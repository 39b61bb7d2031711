"""A follower: runs the steps that the leader of its instance tells it, and moves its own heads of the KV."""

from __future__ import annotations

import time
from collections import defaultdict, deque

from xpyd.kv.arenas import Arenas
from xpyd.model.runner import ModelRunner
from xpyd.transport.base import Transport
from xpyd.worker.base import IDLE_SLEEP_S
from xpyd.worker.desk import Desk
from xpyd.worker.messages import Beat, EndBlock, Gone, Move, Moved, Step, Sums
from xpyd.worker.pulse import Pulse
from xpyd.worker.shards import Shapes, ShardReceive, ShardSend


class Follower:
    """One rank of an instance, for the length of one block; ``transport`` and ``shapes`` where KV moves.

    It has no scheduler and talks to no client. Between layers and steps it looks at its messages, as leaders do.
    """

    def __init__(
        self, runner: ModelRunner, desk: Desk, leader: int, transport: Transport | None, shapes: Shapes | None
    ) -> None:
        self.ledger_bytes = 0
        self._runner = runner
        self._arenas = Arenas(runner.cache)
        self._desk = desk
        self._leader = leader
        self._transport = transport
        self._shapes = shapes
        self._steps: deque[Step] = deque()
        self._sends: dict[int, ShardSend] = {}
        self._receives: dict[int, ShardReceive] = {}
        self._sums: defaultdict[int, dict[int, Sums]] = defaultdict(dict)  # by request and source, until compared
        self._parts_ready: dict[int, int] = {}  # of requests that are, or will be, sent from here
        self._ending: EndBlock | None = None
        self._pulse = Pulse(desk.mailbox, desk.rank, desk.faults)

    def run(self) -> None:
        """Serve until the leader ends the block; it does so when nothing is in flight here any more."""
        while self._ending is None or (self._steps and not self._ending.abort):
            busy = self._receive()
            busy |= self._move()
            busy |= self._step()
            if not busy:
                time.sleep(IDLE_SLEEP_S)

    def attend(self) -> None:
        """The block has ended here, and not yet everywhere: be heard. Raises ClientLost."""
        self._receive()

    def _receive(self) -> bool:
        busy = False
        for source, message in self._desk.mailbox.poll():
            busy = True
            self._pulse.heard(source)
            match message:
                case Beat() | Gone():  # a loss ends such a run: the leader is told to end the block
                    pass
                case Step():
                    self._steps.append(message)
                case Move():
                    self._start(message)
                case Sums():
                    self._sums[message.request_id][source] = message
                case EndBlock():
                    self._ending = message
                case _:
                    raise AssertionError(f"rank {source} sent {type(message).__name__} to a follower")
        self._pulse.beat()
        return busy

    def _step(self) -> bool:
        if not self._steps:
            return False
        step = self._steps.popleft()
        self._arenas.move(step.moves)
        self._runner.run(step.segments, lambda layer: self._on_layer(step, layer))
        for final in step.finals:
            self._parts_done(final.request_id, final.num_parts)
        return True

    def _on_layer(self, step: Step, layer: int) -> None:
        for final in step.finals:
            if final.by_layer:
                self._parts_done(final.request_id, layer + 1)
        self._receive()
        self._move()

    def _parts_done(self, request_id: int, num_parts: int) -> None:
        self._parts_ready[request_id] = num_parts
        if request_id in self._sends:
            self._sends[request_id].release_parts(num_parts)

    def _start(self, move: Move) -> None:
        assert self._transport is not None
        assert self._shapes is not None
        args = self._transport, self._desk, self._runner.cache.buffer, self._shapes, move
        if move.sends:
            self._sends[move.request_id] = send = ShardSend(*args)
            send.release_parts(self._parts_ready.get(move.request_id, 0))
        else:
            self._receives[move.request_id] = receive = ShardReceive(*args)
            self.ledger_bytes += receive.nbytes

    def _move(self) -> bool:
        """Move KV; True when something moved. Tells the leader what is done."""
        if self._transport is None:
            return False
        busy = self._transport.progress()
        for request_id, send in list(self._sends.items()):
            busy |= send.advance()
            if send.done and self._all_final(request_id, send):
                begin_ns = self._desk.clock.at(send.begin_ns) if send.begin_ns is not None else 0
                self._done(Moved(request_id, begin_ns, 0, send.part_ends[-1]))
                del self._sends[request_id], self._parts_ready[request_id]
        for request_id, receive in list(self._receives.items()):
            busy |= receive.advance(self._sums[request_id])
            if receive.done:
                self._done(Moved(request_id, 0, receive.landed_ns, 0))
                del self._receives[request_id], self._sums[request_id]
        return busy

    def _all_final(self, request_id: int, send: ShardSend) -> bool:
        """A rank that has nothing to send is done as soon as its leader's step is."""
        return self._parts_ready.get(request_id, 0) == len(send.part_ends)

    def _done(self, moved: Moved) -> None:
        self._desk.mailbox.send(self._leader, moved)
