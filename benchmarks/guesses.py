"""What guessing ahead brings where acceptance is known: CPU seconds per token of decode steps, with it and without.

Checkpoints of ``benchmarks.shallow_checkpoint``: an ordinary random one, whose first layers guess badly, and one whose
first layers say almost all; beside them the model as its own draft, which is always right and costs whole steps. One
thread; the engines take turns, step by step, and CPU time is counted, so that other jobs disturb it little.

python -m benchmarks.guesses
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import thread_time_ns

import torch

from benchmarks.shallow_checkpoint import HEAD_DIM, HEADS, HIDDEN, INNER, KV_HEADS, NUM_LAYERS, VOCAB, write_checkpoint
from xpyd.model.runner import ModelRunner
from xpyd.model.spec import ModelSpec
from xpyd.model.speculation_config import SpeculationConfig
from xpyd.scheduler.chunked import ChunkedScheduler
from xpyd.scheduler.config import SchedulerConfig
from xpyd.scheduler.sequence import Sequence
from xpyd.worker.engine import Engine
from xpyd.worker.speculation import build_speculator, draft_runner

NUM_GUESSES, NUM_FIRST = 3, 2
INPUT_LEN, OUTPUT_LEN, BLOCK_SIZE = 64, 96, 16


@dataclass
class Arm:
    """An engine that decodes, and what that has cost so far."""

    engine: Engine
    num_tokens: int = 0
    num_steps: int = 0
    cpu_ns: int = 0

    @property
    def done(self) -> bool:
        return not self.engine.scheduler.num_running

    def step(self) -> None:
        """One decode step of all sequences; prompts, the draft's too, are computed before and not counted."""
        scheduler = self.engine.scheduler
        begin_ns = thread_time_ns()
        plan = scheduler.schedule()
        outputs = self.engine.run(plan)
        finished = self.engine.commit(plan, outputs)
        if not plan.prefills and self.num_steps >= 0:
            self.cpu_ns += thread_time_ns() - begin_ns
            self.num_tokens += len(outputs)
        self.num_steps += not plan.prefills
        for sequence in finished:
            scheduler.release(sequence)


def arm(spec: ModelSpec, batch: int, speculation: SpeculationConfig) -> Arm:
    """An engine with ``batch`` requests; the first two decode steps, in which a draft reads prompts, do not count."""
    num_blocks = (batch + 1) * (INPUT_LEN + OUTPUT_LEN + BLOCK_SIZE) // BLOCK_SIZE
    runner = ModelRunner(spec, num_blocks, BLOCK_SIZE)
    scheduler = ChunkedScheduler(SchedulerConfig("chunked", batch, 4096, BLOCK_SIZE, num_blocks))
    for number in range(batch):
        prompt = [(17 * number + 7 * place) % VOCAB for place in range(INPUT_LEN)]
        scheduler.add(Sequence(number, prompt, max_output_tokens=OUTPUT_LEN))
    draft = draft_runner(speculation, runner, 1)
    return Arm(Engine(runner, scheduler, build_speculator(speculation, draft, scheduler)), num_steps=-2)


def measure(spec: ModelSpec, batch: int, speculation: SpeculationConfig) -> str:
    """One line: tokens a step of a sequence, CPU of a step without and with guesses, gain in tokens per CPU second."""
    plain, guessing = arm(spec, batch, SpeculationConfig()), arm(spec, batch, speculation)
    for each in (plain, guessing):
        each.step()  # prompts
    while not (plain.done and guessing.done):
        for each in (plain, guessing):
            if not each.done:
                each.step()
    ends = [
        (each.num_tokens / each.num_steps / batch, each.cpu_ns / each.num_steps / 1e6, each.cpu_ns / each.num_tokens)
        for each in (plain, guessing)
    ]
    (_, plain_ms, plain_ns), (tokens, guess_ms, guess_ns) = ends
    return f"{tokens:12.2f} {plain_ms:11.2f} ms {guess_ms:11.2f} ms {plain_ns / guess_ns:9.2f}"


def main() -> None:
    torch.set_num_threads(1)
    print(f"{'checkpoint, draft':40} batch  tokens/step   step without      step with      gain")
    first = SpeculationConfig("layers", num_tokens=NUM_GUESSES, num_layers=NUM_FIRST)
    with tempfile.TemporaryDirectory() as folder:
        for rest in (1.0, 0.1, 0.02):
            path = Path(folder) / f"rest_{rest}"
            write_checkpoint(path, NUM_FIRST, rest)
            shape = NUM_LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB
            spec = ModelSpec("shallow", *shape, checkpoint=str(path))
            drafts = {f"rest {rest:g}, first {NUM_FIRST} of {NUM_LAYERS} layers": first}
            if rest == 1.0:
                drafts["the model itself"] = SpeculationConfig("model", num_tokens=NUM_GUESSES, model=spec)
            for name, speculation in drafts.items():
                for batch in (1, 8):
                    print(f"{name:40} {batch:5} {measure(spec, batch, speculation)}", flush=True)


if __name__ == "__main__":
    main()
