"""CPU time per simulated request over the number of instances and of requests, with peak memory; on one core.

Requests are in proportion to the instances, so that every instance is as busy wherever there are many of them, and the
making of the instances is timed apart.

python -m benchmarks.simulate
python -m benchmarks.simulate --num-requests 1000000 --instances 64 --trace FILE --format azure
"""

from __future__ import annotations

import argparse
import multiprocessing

from benchmarks.simulate.measure import Point, measure

LEAST = 20_000  # requests: fewer take no time that could be measured


def main() -> None:
    options = _parser().parse_args()
    points = [
        Point(num_instances, num_requests, router, options.trace, options.format)
        for router in options.routers
        for num_instances in options.instances
        for num_requests in options.num_requests or [max(LEAST, options.per_instance * num_instances)]
    ]
    print("router             instances  requests  making s  playing s  us/request  simulated s  peak MiB     tokens")
    for point in points:
        with multiprocessing.get_context("spawn").Pool(1) as pool:  # a process each: peak memory is of this point
            found = pool.apply(measure, (point,))
        print(
            f"{point.router:<17} {point.num_instances:>10} {point.num_requests:>9} {found.making_s:>9.2f} "
            f"{found.playing_s:>10.1f} {found.playing_s / point.num_requests * 1e6:>11.1f} {found.simulated_s:>12.1f} "
            f"{found.peak_mib:>9.0f} {found.num_tokens:>10}",
            flush=True,
        )


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m benchmarks.simulate", description=__doc__.splitlines()[0])
    made.add_argument("--instances", type=int, nargs="+", default=[8, 64, 512, 4096])
    made.add_argument("--num-requests", type=int, nargs="+", help=f"in place of --per-instance (at least {LEAST})")
    made.add_argument("--per-instance", type=int, default=200, help="requests for each instance")
    made.add_argument("--routers", nargs="+", default=["round_robin", "least_outstanding"])
    made.add_argument("--trace", help="a trace file, for its lengths")
    made.add_argument("--format", choices=("mooncake", "azure", "burstgpt"), default="azure")
    return made


if __name__ == "__main__":
    main()
