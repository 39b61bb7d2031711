"""The ``saturation`` experiment: every arm at rising rates of arrivals, until each has lost its service level.

All arms play in one session, in turns A B B A (``rate_sweep``). A repeat begins with the same requests at every rate;
their arrivals are closer or further apart.
"""

from __future__ import annotations

from collections.abc import Sequence

from xpyd.config.compare import Saturation
from xpyd.entry import Job
from xpyd.rate_sweep import RateSweep, Turn, played_before
from xpyd.request import Request
from xpyd.trial import open_session, plan_hybrid, write_prediction
from xpyd.worker.block import Block, warm_up_blocks
from xpyd.worker.client import Played


def run_saturation(config: Saturation, job: Job) -> None:
    """Play rounds until no arm asks for another rate. Collective."""
    with open_session(job) as session:
        if config.hybrid.on:
            write_prediction(session, config, job)  # what the hybrid arm reckons with
        plan_hybrid(session, config, job)

        def play(turn: Turn) -> tuple[Sequence[Request], Played | None]:
            block = _block(config, turn)
            return block.requests, session.play(block)

        first = [Turn(0, arm, config.search.start_rps, 0) for arm in config.arms]
        for block in warm_up_blocks([_block(config, turn) for turn in first]):
            session.play(block)
        sweep = RateSweep(config.arms, config.search, config.slo, job, session.rows, session.bcast, play)
        sweep.run(played_before(job))


def _block(config: Saturation, turn: Turn) -> Block:
    requests = config.workload_at(turn.rate_rps).build(turn.repeat)
    return Block(turn.number, turn.repeat, turn.way, requests, scheduler=config.scheduler_of(turn.way))
