"""The ``regret`` experiment: every way of a frozen plan on real ranks, so that one can see what following it costs.

Each placement has a session of its own on the same ranks, all open at once, so that ways can take turns block by block,
on the same requests. Each climbs the rates as the plan's own search does in simulated time (``rate_sweep``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from xpyd.config.regret import Regret
from xpyd.economics.cost import ComputeFit, ComputeModel, LinkFit, LinkModel
from xpyd.economics.delays import Delays
from xpyd.economics.frozen import HASH, FrozenError
from xpyd.economics.nnls import Score
from xpyd.economics.scenario import Calibration
from xpyd.entry import Job
from xpyd.hybrid import HybridConfig
from xpyd.placement import PlacementConfig
from xpyd.plan_file import PLAN, read_plan
from xpyd.plan_search import Candidate
from xpyd.rate_sweep import RateSweep, Turn, played_before
from xpyd.records import COLOCATED, DISAGGREGATED, HYBRID
from xpyd.request import Request
from xpyd.run_dir import RowWriter
from xpyd.trial import build_session, describe, scenario_of, write_environment
from xpyd.worker.block import Block, warm_up_blocks
from xpyd.worker.client import Played
from xpyd.worker.session import Session

EXACT = Score(0, 0.0, 0.0, 1.0)  # a hybrid way is routed by the costs that the plan reckoned with


def run_regret(config: Regret, job: Job) -> None:
    """Play rounds until no way asks for another rate. Collective. Raises FrozenError where the plan was changed."""
    if job.rank == 0:
        _keep_plan(config, job)
    ways = {way.name: way for way in config.ways}
    search = config.search
    least_s = len(ways) * search.rates_left({}) * search.num_repeats * search.block_s
    job.say(f"{len(ways)} ways to use {config.plan.num_ranks} ranks: {', '.join(ways)}; {least_s:.0f} s at the least")
    with ExitStack() as stack:
        rows = stack.enter_context(RowWriter(job.run_dir, job.rank))
        sessions = _sessions(config, job, stack, rows)
        player = _Player(config, job, ways, sessions)
        for number, way in enumerate(ways):
            player.warm_up(Turn(-1 - number, way, search.start_rps, 0))
        bcast = next(iter(sessions.values())).bcast
        sweep = RateSweep(list(ways), search, config.slo, job, rows, bcast, player.play, sure=True)
        sweep.run(played_before(job))


def _keep_plan(config: Regret, job: Job) -> None:
    """A copy in the run folder, before anything is measured."""
    if (job.run_dir.path / PLAN).exists():
        return
    content = read_plan(Path(config.regret.plan))
    if content[HASH] != config.regret.sha256:
        raise FrozenError(
            f"{config.regret.plan}: another plan than this run was started with ({content[HASH][:12]}, and not "
            f"{config.regret.sha256[:12]}); restore it, or start a new run"
        )
    job.run_dir.write_json(PLAN, content)


def _sessions(config: Regret, job: Job, stack: ExitStack, rows: RowWriter) -> dict[PlacementConfig, Session]:
    """One for each placement, on all ranks."""
    made: dict[PlacementConfig, Session] = {}
    for way in config.ways:
        if way.placement not in made:
            serve = config.serve(way)
            made[way.placement] = stack.enter_context(build_session(serve, job, rows=rows))
            describe(made[way.placement], serve, job)
    routes: dict[str, str] = {}
    for session in made.values():
        routes |= session.links.routes if session.links is not None else {}
    labelled = max(made.values(), key=lambda session: session.placement.shared_node)
    write_environment(job, labelled.placement, labelled.cores.mine, routes, config.fabric.emulated)
    return made


class _Player:
    """Plays blocks of any way, in the session of its placement."""

    def __init__(
        self,
        config: Regret,
        job: Job,
        ways: Mapping[str, Candidate],
        sessions: Mapping[PlacementConfig, Session],
    ) -> None:
        self._config, self._job, self._ways, self._sessions = config, job, ways, sessions

    def play(self, turn: Turn) -> tuple[Sequence[Request], Played | None]:
        block = self._block(turn)
        return block.requests, self._session(turn).play(block)

    def warm_up(self, turn: Turn) -> None:
        """A short block without rows."""
        (block,) = warm_up_blocks([self._block(turn)])
        self._session(turn).play(block)

    def _block(self, turn: Turn) -> Block:
        way = self._ways[turn.way]
        arm = HYBRID if way.hybrid else DISAGGREGATED if way.splits else COLOCATED
        requests = self._config.workload_at(turn.rate_rps).build(turn.repeat)
        return Block(turn.number, turn.repeat, arm, requests, transfer=self._config.serve(way).transfer)

    def _session(self, turn: Turn) -> Session:
        """That of the turn's way; at the client of a hybrid one with what the plan routed by."""
        way, config = self._ways[turn.way], self._config
        session = self._sessions[way.placement]
        if way.hybrid and self._job.rank == 0:
            asked = replace(config.serve(way), workload=config.workload_at(turn.rate_rps))
            scenario = scenario_of(asked, 1, session.spec, config.scheduler)
            session.hybrid = HybridConfig("cost"), self._calibration, scenario
        return session

    @cached_property
    def _calibration(self) -> Calibration:
        """The plan's costs, where its copy is: at rank 0."""
        costs = self._job.run_dir.read_json(PLAN)["costs"]
        compute, link = ComputeModel(**costs["compute"]), LinkModel(**costs["link"])
        return Calibration(ComputeFit(compute, EXACT), LinkFit(link, EXACT), Delays(**costs.get("delays", {})))
