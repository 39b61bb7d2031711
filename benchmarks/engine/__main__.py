"""The engine beside its limit, in one run: the matrix products of a step alone; and transformers on the same weights.

make bench-engine                                  everything on a CPU, under 5 minutes
python -m benchmarks.engine --quick                tiny and wide, fewer steps, about a minute
python -m benchmarks.engine --models small --dtype bfloat16
python -m benchmarks.engine --models qwen3_0_6b --quick   a published shape, random weights; minutes, see points.MODELS
python -m benchmarks.engine --device cuda          an 8B model's steps on a GPU, beside bandwidth and matrix rate

Arms take turns, and every ratio is the median of ratios inside one repeat.
"""

from __future__ import annotations

import argparse
import gc
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import gpu, own, ratios
from benchmarks.engine.arms import EngineArm, Products, Step, TransformersArm, save_checkpoint
from benchmarks.engine.overhead import Overhead
from benchmarks.engine.points import DEFAULT, MODELS, Point, points, spec_of
from benchmarks.engine.report import draw, overhead_table, steps_table, write_json
from benchmarks.tables import print_tables, write_csv
from xpyd import native
from xpyd.environment import lone_environment
from xpyd.model.runner import ModelRunner

MIN_REPEATS, MAX_REPEATS = 3, 25
PARTS = ("decode", "prefill", "own")


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    folder = options.out or Path("runs/bench-engine") / datetime.now().strftime("%Y%m%d-%H%M%S-%f")
    if options.device == "cuda":
        return gpu.main(folder, options.model)
    models = options.models or (["tiny", "wide"] if options.quick else list(DEFAULT))
    specs = [spec_of(model, options.dtype) for model in models]
    folder.mkdir(parents=True)
    torch.set_num_threads(options.threads)
    rows = []
    for spec in specs:
        every = list(points(spec.name, options.quick))
        wanted = [point for point in every if point.kind in options.parts]
        if not wanted:
            continue
        num_blocks = max(point.batch * point.num_blocks for point in every) + 64
        engine = EngineArm(spec, options.threads, num_blocks)
        theirs = _transformers(engine.runner, options.dtype)
        for point in wanted:
            _say(f"{spec.name}: {point.name}")
            repeats = list(_measure(_steps(engine, theirs, point), options.seconds or (1.5 if options.quick else 4.0)))
            rows.append(ratios.row_of(point, repeats))
    found = []
    if "own" in options.parts:
        found = own.measure(models, options.dtype, options.threads, options.quick, folder)
    _report(rows, found, _conditions(options), folder)
    return 0


def _parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(
        prog="python -m benchmarks.engine", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--models", nargs="+", metavar="MODEL", help=f"of {', '.join(MODELS)} (default: the first three)")
    made.add_argument("--quick", action="store_true", help="tiny and wide, fewer steps and repeats")
    made.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, help="own: a worker's own work (default: all)"
    )
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    made.add_argument("--threads", type=int, default=1, help="of every arm (default: 1, as a worker with one core)")
    made.add_argument("--seconds", type=float, help="to repeat each step for (default: 4; 1.5 with --quick)")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    made.add_argument("--model", default="llama3_8b", help="of conf/model, with --device cuda (default: llama3_8b)")
    made.add_argument("--out", type=Path, help="a new folder for CSV, JSON and the plot (default: runs/...)")
    return made


def _transformers(runner: ModelRunner, dtype: str) -> TransformersArm | None:
    with tempfile.TemporaryDirectory() as folder:
        try:
            import transformers

            transformers.utils.logging.disable_progress_bar()
            save_checkpoint(runner, Path(folder))
            return TransformersArm(Path(folder), dtype)
        except ImportError as error:
            _say(f"left out: transformers: {error}; pip install transformers")
            return None


def _steps(engine: EngineArm, theirs: TransformersArm | None, point: Point) -> dict[str, Step]:
    products = Products(engine.runner)
    steps = {
        ratios.ENGINE: engine.step(point),
        ratios.ATTENTION: products.attention(point),
    }
    ways = products.packed(point), products.reordered(point), products.plain(point)
    steps |= dict(zip(ratios.PRODUCTS, ways, strict=True))
    if theirs is not None:
        steps |= dict(zip(ratios.RIVALS, (theirs.dynamic(point), theirs.static(point)), strict=True))
    return steps


@torch.inference_mode()
def _measure(steps: dict[str, Step], seconds: float) -> Iterator[ratios.Repeat]:
    """Repeat until the time is over; the first run of each arm is not counted, and their order is drawn each time."""
    order, generator = list(steps), random.Random(0)
    end = time.monotonic() + seconds
    for repeat in range(-1, MAX_REPEATS):
        generator.shuffle(order)
        taken = {name: _timed(steps[name]) for name in order}
        if repeat >= 0:
            yield taken
        if repeat + 1 >= MIN_REPEATS and time.monotonic() > end:
            return


def _timed(step: Step) -> float:
    step.reset()
    gc.collect(0)
    gc.disable()
    begin = time.perf_counter_ns()
    step.run()
    taken = (time.perf_counter_ns() - begin) / 1e9
    gc.enable()
    return taken


def _conditions(options: argparse.Namespace) -> dict[str, Any]:
    words = [options.dtype, f"{options.threads} thread{'s' * (options.threads > 1)}"]
    words.append("compiled kernels" if native.available() else "no compiled kernels")
    found = lone_environment(Path(__file__).parents[2], words)
    return found | {"dtype": options.dtype, "num_threads": options.threads, "torch": torch.__version__}


def _report(rows: Sequence[ratios.Row], found: Sequence[Overhead], conditions: dict[str, Any], folder: Path) -> None:
    labels = conditions["labels"]
    print_tables([steps_table(rows, labels)] * bool(rows) + [overhead_table(found, labels)] * bool(found))
    write_csv(rows, ratios.Row, folder / "rows.csv")
    write_json(rows, found, conditions, folder / "results.json")
    if rows:
        draw(rows, labels, folder / "engine.png")
    print(f"results: {folder}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
