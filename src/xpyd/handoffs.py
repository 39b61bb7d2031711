"""The ``handoff`` experiment: every mode on the same prompts, one prompt at a time, after a prediction of each.

Modes alternate in a fresh order every repeat, so that a drift of the machine falls on all of them.
"""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np

from xpyd.config.wire import Handoff
from xpyd.economics.handoff import Prompt, handoff_times
from xpyd.economics.ledger import length_class
from xpyd.entry import Job
from xpyd.records import DISAGGREGATED, PREDICTED
from xpyd.request import Request
from xpyd.trial import fit_points, open_session, play_all
from xpyd.worker.block import Block
from xpyd.worker.calibrate import calibrate
from xpyd.worker.session import Session


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
    prompt = Prompt(
        session.spec,
        config.sweep.input_len,
        config.scheduler.max_num_batched_tokens if config.scheduler.policy == "chunked" else None,
        config.scheduler.block_size,
        config.transfer.max_piece_bytes,
    )
    models = calibration.compute.model, calibration.link.model
    modes = {
        f"{transfer.direction} {transfer.mode}": asdict(handoff_times(*models, prompt, transfer.mode))
        for transfer in config.transfers
    }
    classes = {length_class(config.sweep.input_len): modes}
    job.run_dir.write_json(PREDICTED, {"calibration": asdict(calibration), "classes": classes})
