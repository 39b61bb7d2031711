"""A large model's steps on a GPU beside what the device can do: measured bandwidth, measured matrix rate.

Not run yet: no GPU was at hand. The tests run ``measure`` on a CPU with a small model, which shows that it works, and
nothing of a GPU's speed.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch
import yaml

from benchmarks.engine.arms import EngineArm
from benchmarks.engine.points import CONF, decode, prefill
from xpyd.environment import lone_environment
from xpyd.kv.cache import DTYPES
from xpyd.model.runner import Segment
from xpyd.model.spec import ModelSpec

REPEATS, WARM_UP = 20, 3
DECODE_MOST, PREFILL_LEAST = 1.3, 0.6


@dataclass(frozen=True)
class Limits:
    """What the device was measured to do."""

    bytes_per_s: float  # read and written by a copy of a tensor far larger than its caches
    flops_per_s: float  # of a square product in the model's dtype


@dataclass(frozen=True)
class Found:
    """One step: its time, and its share of the limit that matters to it."""

    step: str
    seconds: float
    limit_s: float
    ratio: float  # seconds over limit_s
    target: str


def main(folder: Path, model: str) -> int:
    """Raises SystemExit with the reason where there is no GPU."""
    if not torch.cuda.is_available():
        raise SystemExit("--device cuda: torch finds no GPU here; run it on a machine with one, or leave --device out")
    spec = ModelSpec(**{**yaml.safe_load((CONF / f"{model}.yaml").read_text()), "dtype": "bfloat16"})
    found, limits = measure(spec, "cuda", prompt=2048, context=1024, batches=(1, 8, 32))
    folder.mkdir(parents=True)
    environment = lone_environment(Path(__file__).parents[2], ["GPU", torch.cuda.get_device_name(), spec.dtype])
    content = {"conditions": environment, "limits": asdict(limits), "steps": [asdict(each) for each in found]}
    (folder / "results.json").write_text(json.dumps(content, indent=1) + "\n")
    print(f"{limits.bytes_per_s / 1e9:,.0f} GB/s, {limits.flops_per_s / 1e12:,.0f} TFLOP/s measured")
    for each in found:
        print(f"{each.step:42} {each.seconds * 1e3:9.2f} ms   {each.ratio:5.2f} x limit   {each.target}")
    print(f"results: {folder}")
    return 0


def measure(
    spec: ModelSpec, device: str, prompt: int, context: int, batches: tuple[int, ...], copied_bytes: int = 4 << 30
) -> tuple[list[Found], Limits]:
    """Decode steps, a prefill, and the largest decode batch beside that prefill in one step."""
    limits = measure_limits(DTYPES[spec.dtype], device, copied_bytes)
    points = [decode(spec.name, batch, context) for batch in batches]
    whole = prefill(spec.name, prompt)
    num_blocks = sum(point.batch * point.num_blocks for point in (points[-1], whole))
    arm = EngineArm(spec, torch.get_num_threads(), num_blocks, device)
    found = []
    for point in points:
        moved = spec.step_weight_bytes(point.batch) + point.batch * spec.kv_read_bytes(1, context + 1)
        found.append(_found(point.name, _seconds(arm.step(point).run, device), moved / limits.bytes_per_s, DECODE_MOST))
    limit_s = spec.flops(prompt, prompt) / limits.flops_per_s
    found.append(_found(whole.name, _seconds(arm.step(whole).run, device), limit_s, 1 / PREFILL_LEAST))
    alone, beside = found[len(points) - 1], f"{points[-1].name}, with a prefill of {prompt} in the step"
    seconds = _seconds(_together(arm, points[-1].batch, context, prompt), device)
    return [*found, Found(beside, seconds, alone.seconds, seconds / alone.seconds, "interference")], limits


def measure_limits(dtype: torch.dtype, device: str, copied_bytes: int) -> Limits:
    side = 8192 if device == "cuda" else 256
    left = torch.randn(side, side, device=device).to(dtype)
    source = torch.zeros(copied_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    copying = _seconds(lambda: target.copy_(source), device)
    return Limits(2 * source.nbytes / copying, 2 * side**3 / _seconds(lambda: left @ left, device))


def _found(step: str, seconds: float, limit_s: float, most: float) -> Found:
    ratio = seconds / limit_s
    return Found(step, seconds, limit_s, ratio, f"{'met' if ratio <= most else 'MISSED'}, at most {most:.2f}")


def _together(arm: EngineArm, batch: int, context: int, prompt: int) -> Callable[[], Any]:
    """One step of ``batch`` decodes and a whole prompt, each in blocks of its own."""
    size, vocab = arm.runner.cache.block_size, arm.runner.spec.vocab_size
    per_decode, per_prompt = -(-(context + 1) // size), -(-prompt // size)
    first = batch * per_decode
    segments = [
        Segment([i % vocab], context, list(range(i * per_decode, (i + 1) * per_decode)), 0, 1, True)
        for i in range(batch)
    ]
    tokens = [i % vocab for i in range(prompt)]
    segments.append(Segment(tokens, 0, list(range(first, first + per_prompt)), 0, 0, True))
    return lambda: arm.runner.run(segments)


def _seconds(run: Callable[[], Any], device: str) -> float:
    """The median of single runs, each waited for."""
    taken = []
    with torch.inference_mode():
        for _ in range(WARM_UP + REPEATS):
            _wait(device)
            begin = perf_counter()
            run()
            _wait(device)
            taken.append(perf_counter() - begin)
    return median(taken[WARM_UP:])


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()
