"""Why a request takes longer where there are many instances: what they need comes from memory, and not from a cache.

The same small clusters play the same requests twice, one after another and in turns, event by event. Nothing differs
but how much memory is touched between two events of the same instance.

python -m benchmarks.simulate.turns
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Iterator

from benchmarks.simulate.point import Point
from xpyd import compiled


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m benchmarks.simulate.turns", description=__doc__.splitlines()[0])
    made.add_argument("--clusters", type=int, default=64)
    made.add_argument("--instances", type=int, default=64, help="of each cluster")
    made.add_argument("--per-instance", type=int, default=20, help="requests for each instance")
    made.add_argument("--routers", nargs="+", default=["round_robin", "least_outstanding"])
    options = made.parse_args()
    simulator = "compiled" if compiled.use() else "plain"
    print("simulator router             clusters  instances  one after another  in turns  us/request")
    gc.disable()
    for router in options.routers:
        num = options.per_instance * options.instances
        point = Point(options.instances, num, router, simulator, None, "azure")
        us = [_play(point, options.clusters, in_turns) for in_turns in (False, True)]
        print(
            f"{simulator:<9} {router:<17} {options.clusters:>9} {options.instances:>10} {us[0]:>18.1f} {us[1]:>9.1f}",
            flush=True,
        )


def _play(point: Point, num_clusters: int, in_turns: bool) -> float:
    """Microseconds of CPU per request; drawing the requests is not in it."""
    players = [_events(point, seed) for seed in range(num_clusters)]
    for player in players:
        next(player)
    begin_s = time.process_time()
    while players:
        players = [player for player in players if _go_on(player, in_turns)]
    return (time.process_time() - begin_s) / (num_clusters * point.num_requests) * 1e6


def _go_on(player: Iterator[None], in_turns: bool) -> bool:
    """One event more, or all; whether any are left."""
    if in_turns:
        return next(player, player) is None
    for _ in player:
        pass
    return False


def _events(point: Point, seed: int) -> Iterator[None]:
    """One cluster, which stops before its first event and after each."""
    from benchmarks.simulate.measure import setup_of, workload_of
    from xpyd.simulate.account import Account
    from xpyd.simulate.cluster import Cluster
    from xpyd.simulate.costs import PS_PER_NS
    from xpyd.simulate.stream import stream_requests

    setup = setup_of(point)
    account = Account(0, setup.slo, None, with_steps=False, begin_ns=0)
    cluster = Cluster(setup, account, lambda request_id: False)
    requests = list(stream_requests(workload_of(point), seed, point.num_requests))
    agenda = cluster.agenda
    yield
    for request in requests:
        due_ps = request.arrival_offset_ns * PS_PER_NS
        while len(agenda) and agenda.next_ps() < due_ps:
            agenda.happen()
            yield
        cluster.arrive(request, due_ps)
        yield
    while cluster.flights:
        agenda.happen()
        yield
    assert account.totals.num_finished == point.num_requests


if __name__ == "__main__":
    main()
