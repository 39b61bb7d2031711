"""Every mode of the hand-off in one session: the same requests colocated, then moved in each way that is named.

Usage: hand_off_modes.py FOLDER TRANSPORT SETTINGS (JSON of TransferConfig fields that hold for all). Three ranks. With
staging=auto, every mode is also played staged, and with the choice left to the predicted costs.
A prefill rank poisons its blocks the moment that it frees them: whatever is read from them later is seen.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from itertools import product

from sessions import make_setup, play

from xpyd.kv.codec.config import CodecConfig
from xpyd.model.spec import ModelSpec
from xpyd.mpi import MPI
from xpyd.placement import PlacementConfig
from xpyd.records import COLOCATED, DISAGGREGATED
from xpyd.request import Request
from xpyd.scheduler.base import Scheduler
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.sequence import Sequence
from xpyd.transport.fabric import FabricConfig
from xpyd.worker.block import Block
from xpyd.worker.session import Session
from xpyd.worker.transfer_config import Mode, TransferConfig

MODEL = ModelSpec("test", 3, 32, 4, 2, 8, 64, 128)
SCHEDULER = SchedulerConfig("chunked", max_num_seqs=2, max_num_batched_tokens=32, block_size=4, num_kv_blocks=256)
LENGTHS = ((40, 12), (70, 12), (33, 1), (96, 12), (8, 12), (64, 12))  # (input, output); a request of 1 never moves

POISON = 0x42  # as floats large but finite: a masked slot of a partly filled block may hold it


def blocks(settings: dict[str, object]) -> list[Block]:
    requests = [Request(i, 0, length, out, seed=i) for i, (length, out) in enumerate(LENGTHS)]
    base = TransferConfig(verify="always", **settings)  # type: ignore[arg-type]
    modes: tuple[Mode, ...] = ("whole", "layerwise", "chunkwise")
    encoded = base.codec.name != "none"  # travels staged, which a push cannot
    ways = product(("pull",) if encoded else ("pull", "push"), modes, ("prefill", "decode"))
    moved = [
        replace(base, staging="on" if encoded else "off", direction=direction, mode=mode, first_token=first)  # type: ignore[arg-type]
        for direction, mode, first in ways
    ]
    if base.staging == "auto":
        moved += [replace(base, staging="on", mode=mode) for mode in modes]
        moved += [replace(base, staging="auto", mode=mode) for mode in modes]
    arms = [(COLOCATED, None), *((DISAGGREGATED, transfer) for transfer in moved)]
    return [
        Block(number, 0, arm, requests, concurrency=len(requests), transfer=transfer)
        for number, (arm, transfer) in enumerate(arms)
    ]


def poison_what_is_freed(session: Session) -> None:
    if MPI.COMM_WORLD.rank != 1:
        return
    assert session.runner is not None
    cache, free = session.runner.cache, Scheduler.release

    def release(self: Scheduler, sequence: Sequence, reuse: bool = True) -> None:
        for block, layer in product(sequence.block_table, range(cache.layout.num_layers)):
            begin = cache.layout.offset(layer, block)
            cache.buffer[begin : begin + cache.layout.block_bytes] = POISON
        free(self, sequence, reuse)

    Scheduler.release = release  # type: ignore[method-assign]


def main() -> None:
    settings = json.loads(sys.argv[3])
    if "codec" in settings:
        settings["codec"] = CodecConfig(**settings["codec"])
    transfer = TransferConfig(**settings)
    placement = PlacementConfig(num_prefill=1, num_decode=1, allow_shared_node=True)
    fabric = FabricConfig("test", 10.0, message_bytes=10_000)
    setup = make_setup(MODEL, placement, SCHEDULER, sys.argv[2], transfer, fabric)
    transfer.check(SCHEDULER, MODEL.block_bytes(SCHEDULER.block_size))
    setup.transport.check(setup.fabric, transfer.needs())
    play(setup, sys.argv[1], blocks(settings), prepare=poison_what_is_freed)


if __name__ == "__main__":
    main()
