"""Hand-offs in simulated time: offers and back-pressure, parts that become final, and what lands.

As ``worker.source`` and ``worker.destination`` do it; messages are two delays. Pull: an offer waits at the decode
instance for a seat and blocks. Push: blocks are asked for when the request arrives, and what has landed may wait for a
seat.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from mypy_extensions import mypyc_attr

from xpyd.records import TransferRow
from xpyd.request import Stage
from xpyd.scheduler.sequence import Sequence, StepPlan
from xpyd.simulate.account import Flight
from xpyd.simulate.agenda import Event
from xpyd.simulate.costs import to_ps
from xpyd.simulate.instance import Instance
from xpyd.simulate.links import Flow, Links
from xpyd.simulate.pool import tally

if TYPE_CHECKING:
    from xpyd.simulate.cluster import Cluster


@mypyc_attr(acyclic=True)
class Moving(Event):
    """One request's hand-off. ``share`` of its KV, from the begin, is final at the source.

    What happens to it as an event is that ``next_share`` is, or, once it has landed, that its destination knows.
    """

    __slots__ = (
        "computed_ps",
        "flight",
        "flow",
        "handoffs",
        "landed",
        "next_share",
        "num_blocks",
        "offered",
        "reserved_ps",
        "share",
        "table",
    )

    def __init__(self, handoffs: Handoffs, flight: Flight, num_blocks: int) -> None:
        super().__init__()
        self.handoffs = handoffs
        self.flight = flight
        self.num_blocks = num_blocks
        self.offered = False
        self.table: list[int] | None = None  # at the destination
        self.reserved_ps = 0
        self.flow: Flow | None = None
        self.share = 0.0
        self.next_share = 0.0
        self.computed_ps = 0
        self.landed = False

    def happen(self, now_ps: int) -> None:
        if self.landed:
            self.handoffs.known(self, now_ps)
        else:
            self.handoffs.final(self, now_ps)


class Handoffs:
    def __init__(self, cluster: Cluster) -> None:
        setup = cluster.setup
        self._cluster = cluster
        self._setup = setup
        self._config = setup.handover
        self._links = Links(setup.link, setup.handover.pieces_in_flight, cluster.agenda, self)
        self._push = self._config.direction == "push"
        self._leave_ps = to_ps(setup.delays.leave_s) if self._config.mode == "whole" else 0
        self._admit_ps = to_ps(setup.delays.admit_s)
        self._sizes: dict[int, tuple[float, int]] = {}  # blocks -> bytes and descriptors of a hand-off

    def submitted(self, flight: Flight, now_ps: int) -> None:
        """A request has arrived at its prefill instance."""
        if flight.output_len == 1:  # never moves
            return
        flight.moving = Moving(self, flight, -(-flight.input_len // self._setup.scheduler.block_size))
        if self._push:
            self._offer(flight, now_ps)

    def step_begins(self, instance: Instance, now_ps: int) -> None:
        """Pieces that will be final within this step: their hand-off is offered before."""
        if self._config.mode == "whole":
            return
        stretch, num_layers, layerwise = instance.stretch, self._setup.spec.num_layers, self._config.mode == "layerwise"
        assert stretch is not None
        for chunk in instance.plan.prefills:
            flight = instance.flights[chunk.sequence.request_id]
            moving = flight.moving
            if moving is None or not (chunk.samples if layerwise else chunk.start == 0):
                continue
            self._offer(flight, now_ps)
            if layerwise and num_layers > 1:
                layer_ps, share = stretch.first_ps // num_layers, (num_layers - 1) / num_layers
                moving.next_share = share
                self._cluster.agenda.plan(now_ps + layer_ps, moving)

    def chunks_done(self, instance: Instance, plan: StepPlan, now_ps: int) -> None:
        """A step has ended: under ``chunkwise`` the full blocks of its chunks are final."""
        if self._config.mode != "chunkwise":
            return
        for chunk in plan.prefills:
            flight = instance.flights.get(chunk.sequence.request_id)
            moving = None if flight is None else flight.moving
            if flight is not None and moving is not None and not moving.computed_ps:
                full = (chunk.start + chunk.num_tokens) // self._setup.scheduler.block_size
                self._final(flight, full / moving.num_blocks, now_ps)

    def computed(self, flight: Flight, now_ps: int) -> None:
        """The prompt is computed: all of its KV may leave.

        Pulled whole it was offered two layers before (``worker.source``), and a peer that has room has answered by now.
        """
        moving = flight.moving
        assert moving is not None
        moving.computed_ps = now_ps
        leaves_ps = now_ps + self._leave_ps
        self._offer(flight, now_ps)
        encode_ps, _ = self._setup.codec_ps(moving.num_blocks)
        if encode_ps:
            leaves_ps = max(leaves_ps, self._cluster.instances[flight.prefill].spend(encode_ps, now_ps))
        if leaves_ps > now_ps:
            moving.next_share = 1.0
            self._cluster.agenda.plan(leaves_ps, moving)
        else:
            self._final(flight, 1.0, now_ps)
        if self._config.first_token == "prefill":
            self._cluster.first_token(flight, self._cluster.instances[flight.prefill], now_ps)

    def take_offers(self, instance: Instance, now_ps: int) -> None:
        """Accept what fits, first come first served."""
        if not instance.up or not instance.offers:
            return
        caught_up = taken = False
        while instance.offers:
            flight = instance.offers[0]
            moving = flight.moving
            assert moving is not None
            if not caught_up and not instance.has_ample(moving.num_blocks):
                instance.catch_up(now_ps)
                caught_up = True
            table = instance.scheduler.reserve(moving.num_blocks, ahead=self._push)
            if table is None:
                break
            taken = True
            instance.offers.popleft()
            moving.table, moving.reserved_ps = table, now_ps
            self._open(flight, instance, now_ps)
        if taken and caught_up and instance.refit():
            self._cluster.expect_end(instance)

    def admit_landed(self, instance: Instance, now_ps: int) -> None:
        """Let what has landed join the batch, as far as there are seats."""
        while instance.landed and instance.scheduler.can_admit:
            flight = instance.landed.popleft()
            moving, num_input = flight.moving, flight.input_len
            assert moving is not None
            assert moving.table is not None
            outputs = [0] if instance.lumped is None else tally(1)
            sequence = Sequence(flight.request_id, flight.prompt, flight.output_len, outputs, num_input, moving.table)
            instance.scheduler.admit(sequence)
            flight.moving = None
            if self._cluster.hybrid is not None:
                self._cluster.hybrid.landed(flight)
            if flight.recorded:
                self._cluster.account.stamp(flight, Stage.DECODE_ADMIT, instance.rank, now_ps)
            if self._config.first_token == "decode":
                self._cluster.first_token(flight, instance, now_ps)
            instance.join(flight)

    def undo(self, flight: Flight, now_ps: int) -> None:
        """Take a hand-off back at its destination, and off the wire; an instance that is down has forgotten it."""
        moving = flight.moving
        if moving is None:
            return
        destination = self._cluster.instances[flight.decode]
        self.stall(flight, now_ps)
        if destination.up and destination.cut(now_ps):  # there is room again: look at what waits when the step ends
            self._cluster.expect_end(destination)
        for queue in (destination.offers, destination.landed):
            if flight in queue:
                queue.remove(flight)
        if moving.table is not None and destination.up:
            destination.scheduler.unreserve(moving.table)
        flight.moving = None

    def stall(self, flight: Flight, now_ps: int) -> None:
        """One of its ends is down: nothing moves any more."""
        moving = flight.moving
        if moving is not None and moving.flow is not None and not moving.landed:
            self._links.cancel(moving.flow, now_ps)
            self._closed(flight, moving.flow, now_ps)

    def _offer(self, flight: Flight, now_ps: int) -> None:
        moving = flight.moving
        assert moving is not None
        if moving.offered:
            return
        moving.offered = True
        instance = self._cluster.instances[flight.decode]
        instance.flights[flight.request_id] = flight
        instance.offers.append(flight)
        self.take_offers(instance, now_ps)

    def _open(self, flight: Flight, instance: Instance, now_ps: int) -> None:
        moving = flight.moving
        assert moving is not None
        source = self._cluster.instances[flight.prefill]
        num_bytes, num_descriptors = self._size(moving.num_blocks)
        moving.flow = self._links.open(flight, source.port, instance.port, num_bytes, num_descriptors)
        if self._cluster.beside is not None:
            self._cluster.beside.opened(moving.flow, num_bytes, source, instance, now_ps)
        self._cluster.account.totals.kv_bytes += round(num_bytes)
        if moving.share:
            self._links.release(moving.flow, now_ps, moving.share)

    def _size(self, num_blocks: int) -> tuple[float, int]:
        """Bytes and descriptors of a hand-off."""
        found = self._sizes.get(num_blocks)
        if found is None:
            found = self._setup.kv_bytes(num_blocks), self._setup.num_descriptors(num_blocks)
            self._sizes[num_blocks] = found
        return found

    def final(self, moving: Moving, now_ps: int) -> None:
        """A share of its KV may leave: all layers but the last, one after another, or what is encoded now."""
        flight = moving.flight
        if flight.moving is moving and self._cluster.instances[flight.prefill].up:
            self._final(flight, moving.next_share, now_ps)

    def _final(self, flight: Flight, share: float, now_ps: int) -> None:
        moving = flight.moving
        assert moving is not None
        if share > moving.share:
            moving.share = share
            if moving.flow is not None:
                self._links.release(moving.flow, now_ps, share)

    def landed(self, flight: Flight, attempt: int, now_ps: int) -> None:
        """The last byte has arrived."""
        source, destination = self._cluster.instances[flight.prefill], self._cluster.instances[flight.decode]
        if flight.attempt != attempt or not (source.up and destination.up):
            return
        moving = flight.moving
        assert moving is not None
        moving.landed = True
        assert moving.flow is not None
        self._closed(flight, moving.flow, now_ps)
        _, decode_ps = self._setup.codec_ps(moving.num_blocks)
        if decode_ps:
            destination.spend(decode_ps, now_ps)
        self._bill(flight, moving, source, destination, now_ps)
        request_id = flight.request_id
        sequence = source.scheduler.find(request_id)
        assert sequence is not None
        source.scheduler.release(sequence)
        del source.flights[request_id]
        if source.scheduler.num_waiting or source.offers:  # for blocks, perhaps
            if source.idle:
                self._cluster.boundary(source, now_ps)
            elif source.cut(now_ps):
                self._cluster.expect_end(source)
        if self._admit_ps:
            self._cluster.agenda.plan(now_ps + self._admit_ps, moving)
        else:
            self.known(moving, now_ps)

    def known(self, moving: Moving, now_ps: int) -> None:
        """The destination has seen that all is there: it joins the batch at the next boundary."""
        flight = moving.flight
        destination = self._cluster.instances[flight.decode]
        if flight.moving is not moving or not destination.up:
            return
        destination.landed.append(flight)
        if destination.idle:
            self._cluster.boundary(destination, now_ps)
        elif destination.cut(now_ps):
            self._cluster.expect_end(destination)

    def _closed(self, flight: Flight, flow: Flow, now_ps: int) -> None:
        """Nothing of it moves any more."""
        if self._cluster.beside is not None:
            instances = self._cluster.instances
            self._cluster.beside.closed(flow, (instances[flight.prefill], instances[flight.decode]), now_ps)

    def _bill(self, flight: Flight, moving: Moving, source: Instance, destination: Instance, now_ps: int) -> None:
        account, flow, config = self._cluster.account, moving.flow, self._config
        assert flow is not None
        account.totals.transfer.add(now_ps - flow.begin_ps)
        account.totals.exposed.add(now_ps - moving.computed_ps)
        if flight.recorded:
            num_bytes, num_descriptors = self._size(moving.num_blocks)
            account.stamp(flight, Stage.TRANSFER_BEGIN, source.rank, flow.begin_ps)
            account.stamp(flight, Stage.TRANSFER_END, destination.rank, now_ps)
            account.write(
                TransferRow(
                    block=account.block,
                    request_id=flight.request_id,
                    src_rank=source.rank,
                    dst_rank=destination.rank,
                    mode=config.mode,
                    direction=config.direction,
                    staged=False,
                    num_pieces=num_descriptors,
                    payload_bytes=round(num_bytes),
                    reserved_ns=account.ns(moving.reserved_ps),
                    begin_ns=account.ns(flow.begin_ps),
                    end_ns=account.ns(now_ps),
                    num_inflight=flow.num_inflight,
                    verified=False,
                )
            )
