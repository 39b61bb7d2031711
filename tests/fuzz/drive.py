"""Feeds a target many inputs in a process of its own, so that a crash or a hang of a library is a finding too."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
import tempfile
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fuzz.targets import TARGETS

MEMORY_BYTES = 8 << 30  # of address space: an input that asks for more gets a MemoryError, which is a finding
PATIENCE_S = 20.0  # without a word from the process: the input under way hangs
REPORT_EVERY = 100


@dataclass(frozen=True)
class Finding:
    """An input that was neither taken nor refused in words; ``python -m tests.fuzz --only TARGET --seed SEED``."""

    target: str
    seed: int
    what: str


@dataclass
class Tally:
    """What became of the inputs of one target."""

    target: str
    num_taken: int = 0
    num_refused: int = 0
    findings: list[Finding] = field(default_factory=list)

    @property
    def num_inputs(self) -> int:
        return self.num_taken + self.num_refused + len(self.findings)


def drive(name: str, first: int, num_inputs: int, say: Callable[[str], None] = lambda text: None) -> Tally:
    """Feed inputs ``first`` to ``first + num_inputs - 1``; after a crash or a hang go on with the next one."""
    tally, seed = Tally(name), first
    while seed < first + num_inputs:
        seed = _run_child(tally, seed, first + num_inputs, say)
    return tally


def _run_child(tally: Tally, seed: int, end: int, say: Callable[[str], None]) -> int:
    """One process until it is done or dies; returns the seed to go on with."""
    ours, theirs = multiprocessing.get_context("fork").Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=_feed, args=(tally.target, seed, end, theirs))
    child.start()
    theirs.close()
    at = seed
    try:
        while ours.poll(PATIENCE_S):
            kind, at, what = ours.recv()
            if kind == "begin":
                continue
            if kind == "found":
                tally.findings.append(Finding(tally.target, at, what))
            tally.num_taken += kind == "taken"
            tally.num_refused += kind == "refused"
            if (at + 1 - seed) % REPORT_EVERY == 0:
                say(f"{tally.target}: {tally.num_inputs} inputs, {len(tally.findings)} findings")
            at += 1
            if at == end:
                return end
        what = f"no end within {PATIENCE_S:g} s"
    except EOFError:
        child.join()
        code = child.exitcode or 0
        what = f"the process died of {signal.Signals(-code).name}" if code < 0 else f"the process left with {code}"
    finally:
        child.kill()
        child.join()
    tally.findings.append(Finding(tally.target, at, what))
    return at + 1


def _feed(name: str, seed: int, end: int, pipe: Any) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    os.nice(5)
    with tempfile.TemporaryDirectory() as folder:
        target = TARGETS[name](Path(folder))
        for each in range(seed, end):
            pipe.send(("begin", each, ""))
            try:
                kind, what = ("taken" if target.attempt(each) else "refused"), ""
            except Exception:
                kind, what = "found", traceback.format_exc()
            pipe.send((kind, each, what))
