"""What became of the requests of a block, as the client's own rows tell it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from benchmarks.soak.trial import Outcome, Strike, fault_file, lost_file
from xpyd.records import LossRow, StageRow
from xpyd.request import Stage
from xpyd.units import NS_PER_S
from xpyd.worker.block import Block
from xpyd.worker.session import Session


class Stamps:
    """The stage rows and losses of the block that is being played, taken from the client's row writer."""

    def __init__(self, session: Session, folder: Path) -> None:
        self._folder = folder
        self.stages: list[StageRow] = []
        self.losses: list[LossRow] = []
        write = session.rows.write

        def keep(row: Any) -> None:
            if isinstance(row, StageRow):
                self.stages.append(row)
            elif isinstance(row, LossRow):
                self.losses.append(row)
                lost_file(folder, row.rank).touch()
            write(row)

        session.rows.write = keep  # type: ignore[method-assign]

    def outcome(self, block: Block, victims: tuple[int, ...]) -> Outcome:
        """What became of the block's requests; forgets it."""
        ends = {row.request_id: row for row in self.stages if row.stage in (Stage.FINISHED, Stage.FAILED)}
        hit = [row for row in self.stages if row.stage in (Stage.FAILED, Stage.RETRIED)]
        struck = [rank for rank in victims if fault_file(self._folder, rank).exists()]
        found = Outcome(
            block.number,
            tuple(self._strike(rank) for rank in struck),
            tuple(f"rank {row.rank}: {row.reason}" for row in self.losses if row.rank not in struck),
            sum(row.stage == Stage.FINISHED for row in ends.values()),
            sum(row.stage == Stage.FAILED for row in ends.values()),
            sum(row.stage == Stage.RETRIED for row in hit),
            len(block.requests) - sum(row.stage == Stage.FINISHED or bool(row.reason) for row in ends.values()),
            sum(not names(row.reason, {row.rank for row in self.losses}) for row in hit),
            sum("its KV moves" in row.reason for row in hit),
        )
        self.stages.clear()
        self.losses.clear()
        return found

    def _strike(self, rank: int) -> Strike:
        loss = next((row for row in self.losses if row.rank == rank), None)
        if loss is None:
            return Strike(rank, None, "")
        dealt_ns = int(fault_file(self._folder, rank).read_text().split()[0])
        return Strike(rank, (loss.t_ns - dealt_ns) / NS_PER_S, loss.reason)


def names(reason: str, lost: set[int]) -> bool:
    """Whether the reason says which ranks had the request and what it was doing there: those that are left tell."""
    told = re.findall(r"at rank (\d+) \((?:prefill|decode) on [^)]+\): \w+", reason)
    refused = re.search(r"rank \d+ \((?:prefill|decode)\): request \d+ needs", reason)
    named = {int(rank) for rank in re.findall(r"rank (\d+) \((?:prefill|decode) on [^)]+\) is lost", reason)}
    return bool(refused or len(told) == 2 or (named & lost and (told or len(lost) > 1)))
