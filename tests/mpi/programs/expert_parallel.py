"""Every rank runs its own sequences with experts shared among all, beside a whole model: prints the largest difference.

mpirun -n 4 python tests/mpi/programs/expert_parallel.py mpi|gloo
"""

from __future__ import annotations

import sys
from itertools import product

import numpy as np
import torch
from mpi4py import MPI

from xpyd.model.expert_placement import place_experts
from xpyd.model.expert_runner import ExpertRunner
from xpyd.model.instance import group_of
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.shapes import ExpertsShape
from xpyd.model.spec import ModelSpec

SHAPE = ExpertsShape(
    8, 3, 32, norm_topk_prob=True, shared_intermediate_size=48, shared_expert_gate=True, first_k_dense_replace=1
)
SPEC = ModelSpec("experts", 3, 64, 4, 2, 16, 128, 256, experts=SHAPE)
BLOCK_SIZE, NUM_BLOCKS = 4, 32
PROMPTS = [[(7 * i + 11 * j) % 256 for i in range(length)] for j, length in enumerate((9, 17, 5))]


def segment(number: int, decode: bool) -> Segment:
    prompt = PROMPTS[number]
    table = list(range(8 * number, 8 * number + 8))
    return Segment([3], len(prompt), table, 0, 1, True) if decode else Segment(prompt, 0, table, 0, 0, True)


def main() -> None:
    comm = MPI.COMM_WORLD
    exchange = group_of(comm, range(comm.size), sys.argv[1])  # type: ignore[arg-type]
    assert exchange is not None
    # Sequence j belongs to rank j; a fourth rank has none.
    mine = [number for number in range(len(PROMPTS)) if number % comm.size == comm.rank]
    nodes = ["a" if rank < comm.size / 2 else "b" for rank in range(comm.size)]
    whole = ModelRunner(SPEC, NUM_BLOCKS, BLOCK_SIZE)
    every = range(len(PROMPTS))
    expected = [torch.cat([whole.logits([segment(n, decode)]) for n in every]) for decode in (False, True)]
    owners, worst, moved = None, 0.0, []
    for placed, overlap in product((False, True), repeat=2):
        before = sum(exchange.num_to)
        runner = ExpertRunner(exchange, SPEC, NUM_BLOCKS, BLOCK_SIZE, owners if placed else None, overlap)
        for decode in (False, True):
            logits = runner.logits([segment(n, decode) for n in mine])
            differs = (logits - expected[decode][mine]).abs()
            worst = max([worst, float(differs.max()) if len(mine) else 0.0])
        if owners is None:
            counts = np.stack(comm.allgather(runner.visits()))  # [num_ranks, layers of experts, num_experts]
            owners = [place_experts(counts[:, layer], nodes) for layer in range(counts.shape[1])]
            assert counts.sum() == 2 * SHAPE.num_experts_per_tok * (sum(map(len, PROMPTS)) + len(PROMPTS))
        moved.append(sum(exchange.num_to) - before)
    assert exchange.num_to[comm.rank] == 0, "what stays is not sent"
    found = comm.gather((worst, moved, len(runner.moe_layers[0].experts)))
    if found is not None:
        print(max(each[0] for each in found), sum(sum(each[1]) for each in found), [each[2] for each in found])


if __name__ == "__main__":
    main()
