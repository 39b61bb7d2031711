"""A short block of both arms for a calibration: steps as they are in a run, with a client and idle workers about.

A step alone, as ``worker.calibrate`` times it, says how work grows with tokens. In a run the same step also looks after
messages, rows and tokens, which is more to do for some roles than for others, and shares its cores with whoever polls
for work: so it takes longer, and not always equally.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import pairwise
from statistics import median
from typing import Any

from xpyd.economics.cost import ComputePoint
from xpyd.economics.delays import DelayPoint
from xpyd.records import COLOCATED, DISAGGREGATED
from xpyd.request import Request, Stage
from xpyd.units import NS_PER_S
from xpyd.worker.block import Block

INPUT_LENS = (48, 112, 176)  # no step has to part one where scheduler.max_num_batched_tokens is 180 or more
OUTPUT_LEN = 32  # the first dozen steps behind a prompt find nothing in the caches: no more of them than in runs
LONE_OUTPUT_LEN = 4  # of a block that is played for its messages
NUM_REQUESTS = 9
CONCURRENCIES = (1, 3)
BLOCKS_PER_ROUND = 2 * len(CONCURRENCIES)


def calibration_blocks(number: int, num_tokens: int) -> list[Block]:
    """The blocks of round ``number``, closed loop, so that any model keeps up; their requests fit ``num_tokens``."""
    lengths = [length for length in INPUT_LENS if length + OUTPUT_LEN <= num_tokens]
    requests = [
        Request(i, 0, lengths[i % len(lengths)], OUTPUT_LEN, seed=i) for i in range(NUM_REQUESTS * bool(lengths))
    ]
    arms = [(arm, concurrency) for concurrency in CONCURRENCIES for arm in (COLOCATED, DISAGGREGATED)]
    return [
        Block(number * BLOCKS_PER_ROUND + i, number, arm, requests, concurrency, speculates=False)
        for i, (arm, concurrency) in enumerate(arms if requests else [])
    ]


def played_points(steps: Iterable[Mapping[str, Any]], num_blocks: int) -> list[dict[str, list[ComputePoint]]]:
    """A point for each step row, by block and role: from its begin to the begin of the next where it is decoded on.

    What lies between two steps counts as its median. Steps with several prompts, or a part of one, are left out: rows
    do not say how much of it was cached.
    """
    rows = sorted(steps, key=lambda row: (row["block"], row["rank"], row["begin_ns"]))
    turns: defaultdict[str, list[int]] = defaultdict(list)
    for row, after in pairwise(rows):
        same = (row["block"], row["rank"]) == (after["block"], after["rank"])
        if same and row["num_decode_seqs"] and after["num_decode_seqs"]:
            turns[row["role"]].append(after["begin_ns"] - row["end_ns"])
    found: list[dict[str, list[ComputePoint]]] = [{} for _ in range(num_blocks)]
    for row in rows:
        tokens, role = row["num_prefill_tokens"], str(row["role"])
        if tokens and (row["num_prefill_seqs"] > 1 or tokens not in INPUT_LENS):
            continue
        turn_ns = median(turns[role]) if turns[role] else 0
        seconds = (row["end_ns"] - row["begin_ns"] + turn_ns) / NS_PER_S
        point = ComputePoint(seconds, tokens, 0, row["num_decode_seqs"], row["num_context_tokens"])
        found[row["block"]].setdefault(role, []).append(point)
    return found


def lone_block(num_tokens: int) -> Block | None:
    """A few short requests one at a time across the link, for what messages take; None where ``num_tokens`` hold none.

    A prediction has no time for more, and none for steps: it knows those from steps alone.
    """
    length = next((each for each in reversed(INPUT_LENS) if each + LONE_OUTPUT_LEN <= num_tokens), None)
    if length is None:
        return None
    requests = [Request(i, 0, length, LONE_OUTPUT_LEN, seed=i) for i in range(NUM_REQUESTS)]
    return Block(-1, -1, DISAGGREGATED, requests, concurrency=1, speculates=False)


def is_lightest(number: int) -> bool:
    """Whether a block of ``calibration_blocks`` has one request at a time."""
    return number % BLOCKS_PER_ROUND < BLOCKS_PER_ROUND // len(CONCURRENCIES)


def delay_points(stages: Iterable[Mapping[str, Any]], tokens: Iterable[Mapping[str, Any]]) -> list[DelayPoint]:
    """What requests waited for messages and turns, from stage and token rows of blocks with one at a time.

    There nobody is queued, no other step runs, and no other KV moves.
    """
    stamps: defaultdict[tuple[int, int], dict[str, int]] = defaultdict(dict)
    for row in stages:
        stamps[row["block"], row["request_id"]][row["stage"]] = row["t_ns"]
    found = [DelayPoint("tell", (row["t_ns"] - row["emitted_ns"]) / NS_PER_S) for row in tokens]
    for own in stamps.values():
        if Stage.PREFILL_BEGIN in own:
            found.append(DelayPoint("submit", (own[Stage.PREFILL_BEGIN] - own[Stage.ARRIVED]) / NS_PER_S))
        if Stage.TRANSFER_END in own and Stage.DECODE_ADMIT in own:
            computed_ns, there_ns = own[Stage.PREFILL_END], max(own[Stage.PREFILL_END], own[Stage.TRANSFER_END])
            found.append(DelayPoint("leave", max(0, own[Stage.TRANSFER_BEGIN] - computed_ns) / NS_PER_S))
            found.append(DelayPoint("admit", (own[Stage.DECODE_ADMIT] - there_ns) / NS_PER_S))
    return found
