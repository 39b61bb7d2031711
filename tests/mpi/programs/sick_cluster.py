"""The preflight on a cluster where something is wrong: the first argument says what; the rest are its overrides.

wires  rank 1 never answers its peers, rank 2 changes a byte of the first thing that it sends
stuck  rank 2 never comes to be placed
deaf   rank 2 neither sends nor hears over MPI
"""

from __future__ import annotations

import sys
import time
from typing import Any

from experiments import check_cluster
from xpyd.entry import main
from xpyd.mpi import MPI
from xpyd.preflight import conduct, mesh
from xpyd.preflight.outcome import Side
from xpyd.preflight.pairs import PairProbe
from xpyd.preflight.watch import Watch, say_expired

RANK = MPI.COMM_WORLD.rank


def sleep_for_good(*_: Any) -> None:
    while True:
        time.sleep(1)


def wires() -> None:
    give = PairProbe._give
    given: list[int] = []

    def give_wrong_once(self: PairProbe, peer: int, spans: Any, tag: int) -> None:
        self._buffer[0] ^= not given
        given.append(peer)
        give(self, peer, spans, tag)

    if RANK == 1:
        PairProbe.meet = lambda self, pair, address: Side("asleep")  # type: ignore[method-assign]
    if RANK == 2:
        PairProbe._give = give_wrong_once  # type: ignore[method-assign]


def stuck() -> None:
    conduct.STAGE_S = 2.0
    if RANK == 2:
        conduct.node_names = sleep_for_good  # type: ignore[assignment]


def deaf() -> None:
    if RANK == 2:
        mesh.silent_peers = sleep_for_good  # type: ignore[assignment]


if __name__ == "__main__":
    {"wires": wires, "stuck": stuck, "deaf": deaf}[sys.argv.pop(1)]()
    watch = Watch(say_expired)
    check_cluster.start(watch, reach_s=2.0)
    main("check_cluster", lambda job: check_cluster.run(job, watch))
