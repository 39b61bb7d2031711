"""The ``tune_colocated`` experiment: find the colocated rival's best scheduler settings, and write them as a preset.

All candidates play in one session, on the same model and pool, in turns: every repeat plays the same requests through
all of them, forwards and then backwards, so that a drift of the machine falls on all alike.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict, astuple, replace
from datetime import datetime

import yaml

from xpyd.colocated_search import ColocatedSearch, name_of, ranked
from xpyd.config.serve import TuneColocated
from xpyd.entry import Job
from xpyd.records import ColocatedTrialRow
from xpyd.rival import GROUP, PRESET
from xpyd.scheduler.config import SchedulerConfig
from xpyd.score import Score, mean_score, score
from xpyd.trial import open_session
from xpyd.worker.block import Block, warm_up_blocks
from xpyd.worker.session import Session

FIRST_PAIR = 10_000  # of the workload's draws: the requests that compare scores on stay unseen

Scores = dict[str, list[Score]]


def run_tune_colocated(config: TuneColocated, job: Job) -> None:
    """Search, hold the final round, and write ``rival/tuned.yaml``. Collective."""
    alone = replace(config, placement=config.placement.colocated())
    with open_session(replace(job, config=alone)) as session:
        _Tuner(session, config, job).run()


class _Tuner:
    """One search. Every rank keeps the same contenders; rank 0 alone sees scores, and tells who goes on."""

    def __init__(self, session: Session, config: TuneColocated, job: Job) -> None:
        self._session = session
        self._config = config
        self._search: ColocatedSearch = config.search
        self._job = job
        self._candidates = config.search.candidates(config.scheduler)
        self._start = name_of(config.scheduler)
        self._begin_s = time.monotonic()
        self._num_blocks = 0  # played
        self._num_repeats = 0  # likewise
        self._num_rounds = 0

    def run(self) -> None:
        others = [name for name in self._candidates if name != self._start]
        total = self._search.num_blocks(len(others))
        self._job.say(f"{len(self._candidates)} candidates, {total} blocks; start: {self._start}")
        self._warm_up()
        for number, repeats in self._search.num_rounds(len(others)):
            assert number == len(others)
            scores = self._round([self._start, *others], repeats, total)
            if scores is None:
                return
            others = self._session.bcast(self._going_on(scores))
        scores = self._round([self._start, *others], self._search.num_final_repeats, total, final=True)
        if scores is not None and self._job.rank == 0:
            self._write_preset(scores)

    def _warm_up(self) -> None:
        blocks = [self._block(name, 0, number=0) for name in self._candidates]
        for block in warm_up_blocks(blocks, num_requests=2):
            self._session.play(block)

    def _round(self, names: list[str], repeats: int, total: int, final: bool = False) -> Scores | None:
        """The scores of every block by candidate, empty away from rank 0; None where a stop was asked for."""
        number, self._num_rounds = self._num_rounds, self._num_rounds + 1
        left = f", about {self._minutes_left(total):.1f} min left" if self._num_blocks else ""
        self._job.say(f"round {number + 1}{' (final)' * final}: {len(names)} candidates x {repeats} blocks{left}")
        scores: Scores = {name: [] for name in names} if self._job.rank == 0 else {}
        for repeat in range(self._num_repeats, self._num_repeats + repeats):
            for name in names if repeat % 2 == 0 else names[::-1]:
                if not self._play(name, repeat, number, final, scores):
                    self._job.say("stopped on request: no preset; the run folder stays partial")
                    self._job.stop.cut_short = True
                    return None
        self._num_repeats += repeats
        for name, found in scores.items():
            self._job.say(f"  {name:<24} {_words(mean_score(found))}")
        return scores

    def _play(self, name: str, repeat: int, number: int, final: bool, scores: Scores) -> bool:
        """One block, its row and its score; False where it was stopped."""
        block = self._block(name, repeat, self._num_blocks)
        played = self._session.play(block)
        if self._session.bcast(played.stopped if played is not None else None):
            return False
        self._num_blocks += 1
        self._job.stop.num_blocks += 1
        if played is not None:
            self._job.stop.num_failed += played.num_failed
            found = score(played.times, block.requests, self._config.slo, played.end_ns - played.begin_ns)
            scores[name].append(found)
            made = self._candidates[name]
            limits = made.policy, made.max_num_batched_tokens, made.max_num_seqs
            start = name == self._start
            self._session.rows.write(
                ColocatedTrialRow(number, final, name, start, *limits, repeat, block.number, *astuple(found))
            )
        return True

    def _block(self, name: str, repeat: int, number: int) -> Block:
        """A candidate's block; its arm is the candidate's name."""
        workload = self._config.workload
        requests = workload.build(repeat if workload.trace is not None else FIRST_PAIR + repeat)
        return Block(number, repeat, name, requests, workload.concurrency, scheduler=self._candidates[name])

    def _going_on(self, scores: Scores) -> list[str]:
        order = [name for name in self._ranked(scores) if name != self._start]
        return order[: self._search.num_kept(len(order))]

    def _ranked(self, scores: Scores) -> list[str]:
        means = {name: mean_score(found) for name, found in scores.items()}
        return ranked(means, self._search.objective, self._search.tie)

    def _minutes_left(self, total: int) -> float:
        return (time.monotonic() - self._begin_s) / self._num_blocks * (total - self._num_blocks) / 60

    def _write_preset(self, scores: Scores) -> None:
        best = self._ranked(scores)[0]
        means = {name: mean_score(found) for name, found in scores.items()}
        folder = self._job.run_dir.path / GROUP
        folder.mkdir(exist_ok=True)
        path = folder / f"{PRESET}.yaml"
        made_for = self._config.colocated_fingerprint
        why = reason(best, self._start, means, self._search)
        path.write_text(preset_text(self._candidates[best], made_for, why))
        self._job.say(
            f"tuned rival: {best}; preset {path}\n"
            f"compare finds it by itself under run.root={self._config.run.root}; elsewhere: "
            f"--config-dir {self._job.run_dir.path} {GROUP}={PRESET}"
        )


def reason(best: str, start: str, means: Mapping[str, Score], search: ColocatedSearch) -> list[str]:
    """Why the preset is what it is, in lines for its comment."""
    order = ", then ".join(search.objective)
    lines = [f"Objective: {order} (ties within {search.tie:.0%}); means of {search.num_final_repeats} blocks each:"]
    lines += [f"  {name}{' (start)' * (name == start)}: {_words(found)}" for name, found in means.items()]
    if best == start:
        lines.append("Nothing of the search beat the start in the final round, so the start stays.")
    return lines


def preset_text(scheduler: SchedulerConfig, made_for: dict[str, str], why: list[str]) -> str:
    """The YAML of a rival with these settings; it says where they come from and what they are for."""
    comment = [f"Found by experiments.tune_colocated on {datetime.now():%Y-%m-%d}, for the workload in made_for.", *why]
    values = {"use": PRESET, "scheduler": asdict(scheduler), "made_for": made_for}
    return "".join(f"# {line}\n" for line in comment) + yaml.safe_dump(values, sort_keys=False)


def _words(found: Score) -> str:
    return (
        f"goodput {found.goodput_rps:.3g} /s ({found.attainment:.0%}), itl p99 {found.itl_p99_s * 1e3:.3g} ms, "
        f"ttft p99 {found.ttft_p99_s * 1e3:.3g} ms, e2e {found.e2e_mean_s * 1e3:.3g} ms"
    )
