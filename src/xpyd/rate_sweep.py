"""Several ways to serve at rising rates of arrivals, until each has lost its service level: who plays what, and when.

In a round each way plays the rate that its own search asks for, all repeats of it, in turns A B B A. A ``sure`` sweep
goes on until every single repeat holds at the lowest rate and fails at the highest: then so does whatever is drawn from
repeats, and intervals end. A run that was cut short keeps its blocks; the next attempt plays what is missing.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from xpyd.entry import Job
from xpyd.order import interleave
from xpyd.records import SaturationRow
from xpyd.request import Request
from xpyd.run_dir import RowWriter
from xpyd.saturation_search import SaturationSearch
from xpyd.score import score
from xpyd.streams import merge
from xpyd.worker.client import Played
from xpyd.workload.slo import SloConfig


@dataclass(frozen=True)
class Turn:
    """One block that is to be played: ``repeat`` says which requests."""

    number: int
    way: str
    rate_rps: float
    repeat: int


Play = Callable[[Turn], tuple[Sequence[Request], Played | None]]  # the client's rank alone sees what was played


def played_before(job: Job) -> list[SaturationRow]:
    """What earlier attempts on this run folder have played; at rank 0 alone, which decides by it."""
    if job.rank or not job.run_dir.attempt:
        return []
    return [SaturationRow(**row) for row in merge(job.run_dir.path, "saturation").to_pylist()]


class RateSweep:
    """Rank 0 alone sees scores, and tells what is played next; ``bcast`` gives its value to all."""

    def __init__(
        self,
        ways: Sequence[str],
        search: SaturationSearch,
        slo: SloConfig,
        job: Job,
        rows: RowWriter,
        bcast: Callable[[Any], Any],
        play: Play,
        sure: bool = False,
    ) -> None:
        self._ways, self._search, self._slo, self._job = ways, search, slo, job
        self._rows, self._bcast, self._play, self._sure = rows, bcast, play, sure
        self._shares: defaultdict[tuple[str, float], dict[int, float]] = defaultdict(dict)  # attainment by repeat
        self._next_number = max(job.completed, default=-1) + 1
        self._num_played, self._began_s = 0, time.monotonic()

    def run(self, before: Sequence[SaturationRow] = ()) -> None:
        """Play rounds until no way asks for another rate. Collective. ``before``: rows of earlier attempts."""
        for row in before:
            self._shares[row.arm, row.rate_rps][row.repeat] = row.attainment
            self._next_number = max(self._next_number, row.block + 1)
        if before:
            self._job.say(f"resumed, attempt {self._job.run_dir.attempt}: {self._known()} blocks are played")
        while turns := self._bcast(self._round() if self._job.rank == 0 else None):
            for turn in turns:
                if not self._take(turn):
                    self._job.say(f"stopped on request: what was played is kept. {self.missing()}")
                    self._job.stop.cut_short = True
                    return
            if self._job.rank == 0:
                for way in dict.fromkeys(turn.way for turn in turns):
                    self._tell(way)
                self._job.say(self._time_left())

    def missing(self) -> str:
        """What is still to be played, as far as one can know."""
        left = {way: self._rates_left(way) for way in self._ways}
        shown = ", ".join(f"{way} {count}" for way, count in left.items() if count)
        return f"Rates missing, at least: {shown}; run.name={self._job.run_dir.path.name} run.resume=true goes on"

    def _known(self) -> int:
        return sum(len(shares) for shares in self._shares.values())

    def _attained(self, way: str) -> dict[float, float]:
        """Mean attainment at each rate that all repeats of this way have been played at."""
        return {
            rate: fmean(shares.values())
            for (name, rate), shares in self._shares.items()
            if name == way and len(shares) == self._search.num_repeats
        }

    def _next_rate(self, way: str) -> float | None:
        attained = self._attained(way)
        rate = self._search.next_rate(attained)
        if rate is None and self._sure:
            held = min(self._shares[way, min(attained)].values()) >= self._search.attainment
            lost = max(self._shares[way, max(attained)].values()) < self._search.attainment
            return self._search.beyond(attained, held, lost)
        return rate

    def _rates_left(self, way: str) -> int:
        least = self._search.rates_left(self._attained(way))
        return max(least, int(self._next_rate(way) is not None))

    def _round(self) -> list[Turn]:
        """What is missing of the rate that each way asks for, of those that are not done."""
        wanted = {way: self._next_rate(way) for way in self._ways}
        asked = {way: rate for way, rate in wanted.items() if rate is not None}
        if asked:
            shown = ", ".join(f"{way} {rate:g}/s" for way, rate in asked.items())
            self._job.say(f"playing {shown}, {self._search.num_repeats} blocks each")
        order = interleave(self._search.num_repeats, tuple(asked))
        missing = [(way, repeat) for repeat, way in order if repeat not in self._shares[way, asked[way]]]
        begin = self._next_number
        return [Turn(begin + i, way, asked[way], repeat) for i, (way, repeat) in enumerate(missing)]

    def _take(self, turn: Turn) -> bool:
        """One block and its row; False on all ranks where a stop was asked for in the middle of it."""
        requests, played = self._play(turn)
        if self._bcast(played.stopped if played is not None else None):
            return False
        self._job.stop.num_blocks += 1
        self._num_played += 1
        self._next_number = turn.number + 1
        if played is not None:
            self._job.stop.num_failed += played.num_failed
            share = score(played.times, requests, self._slo, played.end_ns - played.begin_ns).attainment
            self._shares[turn.way, turn.rate_rps][turn.repeat] = share
            self._rows.write(SaturationRow(turn.number, turn.way, turn.rate_rps, turn.repeat, share))
            self._rows.flush()  # the next attempt goes on behind it
        return True

    def _tell(self, way: str) -> None:
        attained = self._attained(way)
        rate = next(reversed(attained))
        bracket = self._search.bracket(attained)
        done = " (done)" if self._next_rate(way) is None else ""
        low, high = (f"{each:g}" if each is not None else "?" for each in (bracket.low_rps, bracket.high_rps))
        width = max(len(each) for each in self._ways)
        self._job.say(
            f"  {way:<{width}} {rate:g}/s: attainment {attained[rate]:.0%}; sustains {low} to {high} /s{done}"
        )

    def _time_left(self) -> str:
        rates = sum(self._rates_left(way) for way in self._ways)
        per_block_s = (time.monotonic() - self._began_s) / self._num_played
        left_s = rates * self._search.num_repeats * per_block_s
        return f"  {self._known()} blocks played, at least {rates * self._search.num_repeats} more: {left_s:.0f} s"
