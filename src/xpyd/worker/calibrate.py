"""Short measurements before the first request: engine steps and link, from which the ledger is predicted.

All workers time their steps at the same moment, since they will also work at the same moment. Lengths and batches are
fixed here and not the workload's: a prediction is never scored on the points that it was fitted to.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from math import ceil
from time import perf_counter_ns
from typing import TYPE_CHECKING

import numpy as np

from xpyd.clock import wait_quietly
from xpyd.economics.cost import ComputePoint, LinkPoint
from xpyd.economics.delays import DelayPoint
from xpyd.kv.codec.config import CodecConfig
from xpyd.kv.layout import PoolLayout
from xpyd.kv.plan import plan_request
from xpyd.model.segment import Segment
from xpyd.placement import Role
from xpyd.records import StageRow, TokenRow
from xpyd.units import NS_PER_S
from xpyd.worker.played import delay_points, lone_block
from xpyd.worker.session import Session
from xpyd.worker.wire import receive_once, receive_together, send_once, send_together

if TYPE_CHECKING:  # torch: the client takes part, and has no model
    from xpyd.kv.codec.cells import CellCodec
    from xpyd.model.runner import ModelRunner

# (new tokens, tokens cached before them); the last two, large chunks far behind, tell pairs from tokens
CHUNKS = ((16, 0), (48, 0), (144, 0), (320, 0), (96, 160), (224, 288), (224, 1120))
DECODES = ((1, 40), (1, 400), (3, 40), (6, 40), (6, 200), (12, 40))  # (sequences, context of each)
MIXED = ((40, 3, 40), (144, 6, 40))  # (new tokens, sequences, context)
TRANSFER_BLOCKS = (1, 3, 6, 12, 24, 48, 192)
MIN_TRANSFER_SIZES = 3
AT_ONCE = (2, 4)  # transfers, each of as many blocks as
BLOCKS_AT_ONCE = 24
MAX_TRANSFER_BYTES = 64 << 20  # larger ones say no more, and take many seconds on a slow link
NUM_REPEATS = 3


def calibrate(session: Session) -> tuple[list[ComputePoint], list[LinkPoint]] | None:
    """Timed steps of every worker and timed transfers of one pair, on rank 0; None elsewhere. Collective."""
    steps = list(_time_steps(session.runner, session.setup.scheduler.num_kv_blocks)) if session.runner else []
    wait_quietly(session.comm)
    transfers = _time_transfers(session)
    wait_quietly(session.comm)
    gathered = session.comm.gather((steps, transfers))
    if gathered is None:
        return None
    return [p for each, _ in gathered for p in each], [p for _, each in gathered for p in each]


def time_messages(session: Session) -> list[DelayPoint]:
    """What a few requests waited for messages, on rank 0; nothing elsewhere, nor where none fits the pool.

    Collective.
    """
    scheduler = session.setup.scheduler
    block = lone_block(scheduler.num_kv_blocks * scheduler.block_size)
    rows = (session.rehearse(block) or []) if block is not None else []
    stages, tokens = ([asdict(row) for row in rows if isinstance(row, kind)] for kind in (StageRow, TokenRow))
    return delay_points(stages, tokens)


def _time_steps(runner: ModelRunner, num_blocks: int) -> Iterator[ComputePoint]:
    """Every point that fits the pool and the model, ``NUM_REPEATS`` times, after one unrecorded round."""
    points = [(new, cached, 0, 0) for new, cached in CHUNKS] + [(0, 0, seqs, length) for seqs, length in DECODES]
    points += [(new, 0, seqs, length) for new, seqs, length in MIXED]
    size, longest = runner.cache.block_size, runner.spec.max_position_embeddings
    for repeat in range(-1, NUM_REPEATS):
        for new, cached, num_seqs, context in points:
            num_wanted = num_seqs * -(-context // size) + -(-(new + cached) // size)
            if num_wanted > num_blocks or max(new + cached, context) > longest:
                continue
            segments = _segments(size, new, cached, num_seqs, context)
            begin_ns = perf_counter_ns()
            runner.run(segments)
            seconds = (perf_counter_ns() - begin_ns) / NS_PER_S
            if repeat >= 0:
                yield ComputePoint(seconds, new, cached, num_seqs, num_seqs * context)


def _segments(size: int, new: int, cached: int, num_seqs: int, context: int) -> list[Segment]:
    """``num_seqs`` decodes of ``context`` tokens, and ``new`` tokens behind ``cached`` ones, in blocks of their own."""
    per_sequence = -(-context // size)
    segments = [
        Segment([1], context - 1, list(range(i * per_sequence, (i + 1) * per_sequence)), 0, 0, True)
        for i in range(num_seqs)
    ]
    if new:
        first = num_seqs * per_sequence
        table = list(range(first, first + -(-(new + cached) // size)))
        segments.append(Segment([1] * new, cached, table, 0, 0, True))
    return segments


def _time_transfers(session: Session) -> list[LinkPoint]:
    """Hand-offs of whole block tables between the first prefill and the first decode rank: one at a time, then several.

    With a codec a point is what so many blocks cost: fewer bytes on the wire, and the time to encode and decode them,
    one at a time only.
    """
    placement, transfer = session.placement, session.setup.transfer
    if session.links is None or session.runner is None:
        return []
    source, destination = placement.ranks(Role.PREFILL)[0], placement.ranks(Role.DECODE)[0]
    if session.rank not in (source, destination):
        return []
    layout = session.runner.cache.layout
    codec = _codec(session.runner, transfer.codec)
    wire_share = 1.0 if codec is None else codec.cell_bytes / layout.block_bytes
    points: list[LinkPoint] = []
    sizes = [blocks for blocks in TRANSFER_BLOCKS if blocks <= layout.num_blocks]
    largest = _most_blocks(layout)
    sizes = sizes[:MIN_TRANSFER_SIZES] + [blocks for blocks in sizes[MIN_TRANSFER_SIZES:] if blocks <= largest]
    for seq, blocks in enumerate(sizes * (NUM_REPEATS + 1)):
        sent = range(ceil(blocks * wire_share))
        plan = plan_request(layout, sent, sent, transfer.max_piece_bytes)
        if session.rank == source:
            send_once(session.links.transport, session.comm, destination, plan, seq, transfer.pieces_in_flight)
            continue
        window = transfer.pieces_in_flight
        seconds = receive_once(session.links.transport, session.comm, source, plan, seq, window)
        if seq >= len(sizes):  # the first round warms up
            seconds += 0.0 if codec is None else _codec_s(codec, layout, blocks)
            points.append(LinkPoint(blocks * layout.num_layers * layout.block_bytes, len(plan.destination), seconds))
    if codec is None:
        points += _time_together(session, source, destination, len(sizes) * (NUM_REPEATS + 1))
    return points


def _time_together(session: Session, source: int, destination: int, seq: int) -> list[LinkPoint]:
    """Equal transfers that begin at once, each from and to blocks of its own."""
    assert session.links is not None
    assert session.runner is not None
    transfer, layout, transport = session.setup.transfer, session.runner.cache.layout, session.links.transport
    points: list[LinkPoint] = []
    for repeat in range(-1, NUM_REPEATS):  # -1 warms up
        for together in AT_ONCE:
            blocks = min(BLOCKS_AT_ONCE, min(layout.num_blocks, _most_blocks(layout)) // together)
            if not blocks:
                continue
            tables = [range(i * blocks, (i + 1) * blocks) for i in range(together)]
            plans = [plan_request(layout, table, table, transfer.max_piece_bytes) for table in tables]
            if session.rank == source:
                send_together(transport, session.comm, destination, plans, seq, transfer.pieces_in_flight)
            else:
                seconds = receive_together(transport, session.comm, source, plans, seq, transfer.pieces_in_flight)
                num_bytes = blocks * layout.num_layers * layout.block_bytes
                if repeat >= 0:
                    points.append(LinkPoint(num_bytes, len(plans[0].destination), seconds, together))
            seq += together
    return points


def _most_blocks(layout: PoolLayout) -> int:
    """As many as ``MAX_TRANSFER_BYTES`` hold."""
    return MAX_TRANSFER_BYTES * layout.num_blocks // layout.nbytes


def _codec(runner: ModelRunner, config: CodecConfig) -> CellCodec | None:
    if config.name == "none":
        return None
    from xpyd.kv.codec.cells import CellCodec

    return CellCodec(config, runner.cache.cells)


def _codec_s(codec: CellCodec, layout: PoolLayout, num_blocks: int) -> float:
    """Seconds to encode, and decode again, all layers of so many blocks of the pool."""
    payload = np.empty(num_blocks * codec.cell_bytes, np.uint8)
    layers = [
        np.array([layout.offset(layer, block) for block in range(num_blocks)]) for layer in range(layout.num_layers)
    ]
    begin_ns = perf_counter_ns()
    for cells in layers:
        codec.encode(cells, payload)
        codec.decode(payload, cells)
    return (perf_counter_ns() - begin_ns) / NS_PER_S
