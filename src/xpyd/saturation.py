"""The ``saturation`` experiment: every arm at rising rates of arrivals, until each has lost its service level.

All arms play in one session, in turns A B B A. In a round each arm plays the rate that its own search asks for. A
repeat begins with the same requests at every rate; their arrivals are closer or further apart.
"""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean

from xpyd.config.compare import Saturation
from xpyd.entry import Job
from xpyd.records import SaturationRow
from xpyd.score import Score, score
from xpyd.trial import interleave, open_session, plan_hybrid, write_prediction
from xpyd.worker.session import Block, Session, warm_up_blocks

Attained = dict[str, dict[float, float]]  # arm -> rate -> mean attainment


def run_saturation(config: Saturation, job: Job) -> None:
    """Play rounds until no arm asks for another rate. Collective."""
    with open_session(job) as session:
        if config.hybrid.on:
            write_prediction(session, config, job)  # what the hybrid arm reckons with
        plan_hybrid(session, config, job)
        for block in warm_up_blocks([_block(config, arm, config.search.start_rps, 0, 0) for arm in config.arms]):
            session.play(block)
        _Sweep(session, config, job).run()


class _Stopped(Exception):
    """A stop was asked for in the middle of a block."""


class _Sweep:
    """Rank 0 alone sees scores, and tells what is played next."""

    def __init__(self, session: Session, config: Saturation, job: Job) -> None:
        self._session, self._config, self._job = session, config, job
        self._attained: Attained = {arm: {} for arm in config.arms}
        self._num_blocks = 0

    def run(self) -> None:
        while asked := self._session.bcast(self._asked()):
            try:
                self._round(asked)
            except _Stopped:
                self._job.say("stopped on request: what was played is kept; the run folder stays partial")
                self._job.stop.cut_short = True
                return
            if self._job.rank == 0:
                for arm in asked:
                    self._tell(arm)

    def _asked(self) -> dict[str, float]:
        """The rate that each arm wants to play next, of those that are not done."""
        wanted = {arm: self._config.search.next_rate(found) for arm, found in self._attained.items()}
        return {arm: rate for arm, rate in wanted.items() if rate is not None}

    def _round(self, asked: dict[str, float]) -> None:
        """All repeats of one rate of each arm that asked. Raises _Stopped."""
        shown = ", ".join(f"{arm} {rate:g}/s" for arm, rate in asked.items())
        self._job.say(f"playing {shown}, {self._config.search.num_repeats} blocks each")
        scores: defaultdict[str, list[Score]] = defaultdict(list)
        for repeat, arm in interleave(self._config.search.num_repeats, tuple(asked)):
            found = self._play(arm, asked[arm], repeat)
            if found is not None:
                scores[arm].append(found)
        for arm, played in scores.items():
            self._attained[arm][asked[arm]] = fmean(each.attainment for each in played)

    def _play(self, arm: str, rate_rps: float, repeat: int) -> Score | None:
        """One block and its row: the score on rank 0, None elsewhere. Raises _Stopped on all ranks."""
        block = _block(self._config, arm, rate_rps, repeat, self._num_blocks)
        played = self._session.play(block)
        if self._session.bcast(played.stopped if played is not None else None):
            raise _Stopped
        self._num_blocks += 1
        self._job.stop.num_blocks += 1
        if played is None:
            return None
        self._job.stop.num_failed += played.num_failed
        found = score(played.times, block.requests, self._config.slo, played.end_ns - played.begin_ns)
        self._session.rows.write(SaturationRow(block.number, arm, rate_rps, repeat, found.attainment))
        return found

    def _tell(self, arm: str) -> None:
        attained, search = self._attained[arm], self._config.search
        rate = next(reversed(attained))
        bracket = search.bracket(attained)
        done = " (done)" if search.next_rate(attained) is None else ""
        low, high = (f"{each:g}" if each is not None else "?" for each in (bracket.low_rps, bracket.high_rps))
        self._job.say(f"  {arm:<15} {rate:g}/s: attainment {attained[rate]:.0%}; sustains {low} to {high} /s{done}")


def _block(config: Saturation, arm: str, rate_rps: float, repeat: int, number: int) -> Block:
    return Block(number, repeat, arm, config.workload_at(rate_rps).build(repeat), scheduler=config.scheduler_of(arm))
