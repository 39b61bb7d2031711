"""CPU time per simulated request over the number of instances and of requests, with peak memory; on one core.

Requests are in proportion to the instances, so that each of them plays as many from empty to empty, however many there
are: few instances play several such blocks. The making of the instances is timed apart. The simulator is compiled where
it was (make compile-simulator), or plain.

python -m benchmarks.simulate
python -m benchmarks.simulate --simulators compiled plain --plot curve.png
python -m benchmarks.simulate --num-requests 1000000 --instances 64 --trace FILE --format azure
"""

from __future__ import annotations

import argparse
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from benchmarks.simulate.point import Measured, Point, measure
from xpyd import compiled

LEAST = 20_000  # requests: fewer take no time that could be measured


def main() -> None:
    options = _parser().parse_args()
    is_compiled = compiled.find_build(compiled.cache_folder()) is not None
    points = [
        Point(num_instances, num_requests, router, simulator, options.trace, options.format, num_blocks)
        for simulator in options.simulators or ["compiled" if is_compiled else "plain"]
        for router in options.routers
        for num_instances in options.instances
        for num_requests, num_blocks in _sizes(options, num_instances)
    ]
    print("simulator router             instances  requests  making s  playing s  us/request  peak MiB     tokens")
    measured = [_measured(point) for point in points]
    if options.plot is not None:
        from benchmarks.simulate.plot import plot

        plot(points, measured, options.plot)


def _sizes(options: argparse.Namespace, num_instances: int) -> list[tuple[int, int]]:
    """Requests of a block, and blocks."""
    if options.num_requests:
        return [(num_requests, 1) for num_requests in options.num_requests]
    num_requests = options.per_instance * num_instances
    return [(num_requests, -(-LEAST // num_requests))]


def _measured(point: Point) -> Measured:
    context = multiprocessing.get_context("spawn")  # a process each: peak memory is of this point
    with ProcessPoolExecutor(1, context) as pool:
        found = pool.submit(measure, point).result()
    print(
        f"{point.simulator:<9} {point.router:<17} {point.num_instances:>10} {point.num_blocks * point.num_requests:>9} "
        f"{found.making_s:>9.2f} {found.playing_s:>10.1f} {found.us_per_request:>11.1f} {found.peak_mib:>9.0f} "
        f"{found.num_tokens:>10}",
        flush=True,
    )
    return found


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__.splitlines()[0])
    made.add_argument("--instances", type=int, nargs="+", default=[8, 64, 512, 4096])
    made.add_argument("--num-requests", type=int, nargs="+", help="in place of --per-instance")
    made.add_argument(
        "--per-instance",
        type=int,
        default=60,
        help=f"requests of a block for each instance; blocks until there are {LEAST}",
    )
    made.add_argument("--routers", nargs="+", default=["round_robin", "least_outstanding"])
    made.add_argument("--simulators", nargs="+", choices=("compiled", "plain"), help="compiled, where it was")
    made.add_argument("--plot", metavar="FILE.png", help="draw the curve: us per request over instances")
    made.add_argument("--trace", help="a trace file, for its lengths")
    made.add_argument("--format", choices=("mooncake", "azure", "burstgpt"), default="azure")
    return made


if __name__ == "__main__":
    main()
