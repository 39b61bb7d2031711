"""The ``handoff`` experiment: every mode on the same prompts, one prompt at a time, after a prediction of each.

Modes alternate in a fresh order every repeat, so that a drift of the machine falls on all of them.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from xpyd.config import Handoff
from xpyd.economics.cost import ComputeModel, LinkModel, effective_transfer_s
from xpyd.economics.ledger import length_class
from xpyd.economics.scenario import Calibration
from xpyd.entry import Job
from xpyd.model.spec import ModelSpec
from xpyd.records import DISAGGREGATED
from xpyd.request import Request
from xpyd.trial import fit_points, open_session, play_all
from xpyd.worker.calibrate import calibrate
from xpyd.worker.handoff import TransferConfig
from xpyd.worker.session import Block, Session


def run_handoffs(job: Job) -> None:
    """Predict, warm every mode up, and play all blocks. Collective."""
    config: Handoff = job.config
    with open_session(job) as session:
        _write_prediction(session, config, job)
        blocks = handoff_blocks(config)
        for index, block in enumerate(blocks[: len(config.transfers)]):
            session.play(replace(block, number=-1 - index, requests=block.requests[:1]))
        play_all(session, blocks, job)


def handoff_blocks(config: Handoff) -> list[Block]:
    """One block for each mode in each repeat (the block's ``pair``), all with the same requests."""
    sweep, transfers = config.sweep, config.transfers
    requests = [
        Request(number, 0, sweep.input_len, sweep.output_len, seed=number) for number in range(sweep.num_requests)
    ]
    generator = np.random.default_rng(0)
    order = [(repeat, which) for repeat in range(sweep.num_repeats) for which in generator.permutation(len(transfers))]
    return [
        Block(number, repeat, DISAGGREGATED, requests, concurrency=1, transfer=transfers[which])
        for number, (repeat, which) in enumerate(order)
    ]


def _write_prediction(session: Session, config: Handoff, job: Job) -> None:
    """Calibrate, and write predicted.json before the first request is sent. Collective."""
    job.say("calibrating: engine steps and link, each alone")
    points = calibrate(session)
    if points is None:
        return
    calibration = fit_points(*points, config.fabric.rate_gbps, job)
    modes = {
        f"{transfer.direction} {transfer.mode}": predict_mode(calibration, config, session.spec, transfer)
        for transfer in config.transfers
    }
    classes = {length_class(config.sweep.input_len): modes}
    job.run_dir.write_json("predicted.json", {"calibration": asdict(calibration), "classes": classes})


def predict_mode(
    calibration: Calibration, config: Handoff, spec: ModelSpec, transfer: TransferConfig
) -> dict[str, float]:
    """Seconds of the prefill and of its hand-off; ``floor_s`` is the part that no overlap can hide: the last piece."""
    compute, link = calibration.compute.model, calibration.link.model
    size = config.scheduler.block_size
    num_blocks = -(-config.sweep.input_len // size)
    block_bytes = spec.block_bytes(size) * spec.num_layers
    num_parts, window_s, last_share = _parts(compute, config, spec, transfer.mode)
    wire_s = _wire_s(link, transfer, num_blocks * block_bytes)
    return {
        "prefill_s": compute.prefill_s(config.sweep.input_len, _chunk_tokens(config)),
        "transfer_s": link.alpha_s + wire_s,
        "exposed_transfer_s": effective_transfer_s(link.alpha_s, wire_s, num_parts, window_s),
        "floor_s": link.alpha_s + _wire_s(link, transfer, last_share * num_blocks * block_bytes),
    }


def _parts(compute: ComputeModel, config: Handoff, spec: ModelSpec, mode: str) -> tuple[int, float, float]:
    """In how many parts the KV leaves, the seconds in which they become final, and the last one's share of all."""
    input_len, chunk = config.sweep.input_len, _chunk_tokens(config)
    last = (input_len - 1) % (chunk or input_len) + 1
    if mode == "layerwise":
        return spec.num_layers, compute.step_s(last, input_len - last), 1 / spec.num_layers
    if mode == "chunkwise" and chunk is not None:
        return -(-input_len // chunk), compute.prefill_s(input_len, chunk), last / input_len
    return 1, 0.0, 1.0


def _wire_s(link: LinkModel, transfer: TransferConfig, num_bytes: float) -> float:
    return link.wire_s(num_bytes, -int(-num_bytes // transfer.max_piece_bytes))


def _chunk_tokens(config: Handoff) -> int | None:
    return config.scheduler.max_num_batched_tokens if config.scheduler.policy == "chunked" else None
