"""Real hand-offs beside real steps, for a calibration: what moving KV costs both of its ends (``economics.moving``).

One pair does what ``experiments.contention`` does, at sizes that fit any pool: the destination decodes and takes KV
in, the source computes prompts and gives it. As there, each is also timed with nothing moving, in the same repeat.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import product
from statistics import median
from typing import Any

from xpyd.clock import wait_quietly
from xpyd.economics.moving import BesidePoint
from xpyd.kv.layout import PoolLayout
from xpyd.placement import Role
from xpyd.records import ReceivingGapRow
from xpyd.worker.load import Load, SourceStep
from xpyd.worker.session import Session
from xpyd.worker.sweeps import ContentionSweep
from xpyd.worker.transfer_config import TransferConfig

PAYLOADS_BYTES = (2 << 20, 8 << 20)  # about: whole blocks, as far as the pool has them
BATCHES = (1, 6)
CONTEXT_LEN = 40
NUM_GAPS = 8
PREFILL_TOKENS = 96


def measure_beside(session: Session, num_repeats: int) -> list[BesidePoint] | None:
    """Points of both ends of the first prefill and the first decode rank, on rank 0; None elsewhere. Collective.

    No points where the pool is too small for a hand-off beside the largest batch. Raises TransportError.
    """
    found: list[BesidePoint] = []
    source, destination = (session.placement.ranks(role)[0] for role in (Role.PREFILL, Role.DECODE))
    if session.rank in (source, destination):
        from xpyd.worker.contention import ContentionProbe  # torch: the client, which is here too, goes without

        assert session.runner is not None
        assert session.links is not None
        sends = session.rank == source
        cache = session.runner.cache
        sweep = sweep_for(cache.layout, cache.block_size, session.setup.transfer, num_repeats)
        if sweep is not None:
            rows: list[Any] = []
            peer = destination if sends else source
            probe = ContentionProbe(session.runner, session.links.transport, session.comm, peer, sends, sweep)
            probe.measure(rows.append, loads(sweep))
            payloads = {tokens: _payload(cache.layout, tokens // cache.block_size) for tokens in sweep.prompt_tokens}
            found = sent_points(rows, payloads) if sends else received_points(rows)
    wait_quietly(session.comm)
    gathered = session.comm.gather(found)
    return None if gathered is None else [point for each in gathered for point in each]


def loads(sweep: ContentionSweep) -> list[Load]:
    """A decode batch always runs: what is asked for is what its steps, or those of the source, take."""
    prompts, prefills = (0, *sweep.prompt_tokens), (0, sweep.prefill_tokens)
    return [Load(*point) for point in product(prompts, sweep.num_decode_seqs, prefills)]


def sweep_for(
    layout: PoolLayout, block_size: int, transfer: TransferConfig, num_repeats: int
) -> ContentionSweep | None:
    """The sizes of a calibration in this pool; None where it has no room for a block beside the batch."""
    batch = max(BATCHES) * -(-(CONTEXT_LEN + NUM_GAPS) // block_size)
    room = layout.num_blocks - max(batch, -(-PREFILL_TOKENS // block_size))
    if room < 1:
        return None
    sizes = {min(room, max(1, nbytes // _payload(layout, 1))) for nbytes in PAYLOADS_BYTES}
    return ContentionSweep(
        prompt_tokens=tuple(size * block_size for size in sorted(sizes)),
        num_decode_seqs=BATCHES,
        context_len=CONTEXT_LEN,
        prefill_tokens=PREFILL_TOKENS,
        num_gaps=NUM_GAPS,
        num_repeats=num_repeats,
        pieces_in_flight=transfer.pieces_in_flight,
        max_piece_bytes=transfer.max_piece_bytes,
    )


def received_points(rows: Sequence[Any]) -> list[BesidePoint]:
    """One for each hand-off, from the gaps of the decode batch that it fell into, and those of the batch alone."""
    gaps: defaultdict[tuple[int, int, int, int], list[float]] = defaultdict(list)
    for row in rows:
        if isinstance(row, ReceivingGapRow):
            gaps[row.repeat, row.num_decode_seqs, row.prefill_tokens, row.payload_bytes].append(row.gap_s)
    return [
        BesidePoint(False, sum(own), median(gaps[repeat, batch, prefill, 0]), len(own), nbytes, batch, prefill)
        for (repeat, batch, prefill, nbytes), own in list(gaps.items())
        if nbytes
    ]


def sent_points(rows: Sequence[SourceStep], payloads: dict[int, int]) -> list[BesidePoint]:
    """One for each hand-off from a source that computes prompts; ``payloads``: bytes of each prompt's KV."""
    alone: defaultdict[tuple[int, int], list[float]] = defaultdict(list)
    beside: defaultdict[tuple[int, Load], list[float]] = defaultdict(list)
    for row in rows:
        if row.beside:
            beside[row.repeat, row.load].append(row.seconds)
        else:
            alone[row.repeat, row.load.num_decode_seqs].append(row.seconds)
    return [
        BesidePoint(
            sends=True,
            seconds=sum(own),
            usual_s=median(alone[repeat, load.num_decode_seqs]),
            num_steps=len(own),
            num_bytes=payloads[load.prompt_tokens],
            num_seqs=load.num_decode_seqs,
            num_tokens=load.prefill_tokens,
        )
        for (repeat, load), own in beside.items()
    ]


def _payload(layout: PoolLayout, num_blocks: int) -> int:
    """Bytes of so many blocks, all layers."""
    return num_blocks * layout.num_layers * layout.block_bytes
