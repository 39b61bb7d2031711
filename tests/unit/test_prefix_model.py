"""Real models with and without a prefix cache, tiers and full pools: the same tokens, and less computed."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
import torch

from tests.unit.test_model_runner import MICRO
from xpyd.kv.arenas import Arenas
from xpyd.kv.cache import KVCache
from xpyd.kv.entries import BlockMove
from xpyd.kv.layout import PoolOrder
from xpyd.model.runner import ModelRunner
from xpyd.model.spec import LatentShape, ModelSpec
from xpyd.placement import Role
from xpyd.scheduler.config import Policy, SchedulerConfig
from xpyd.scheduler.registry import build_scheduler
from xpyd.scheduler.sequence import Sequence
from xpyd.worker.engine import Engine

LATENT = replace(MICRO, num_kv_heads=1, head_dim=20, latent=LatentShape(16, 4, 16, 16))
SYSTEM = [(7 * i) % 97 for i in range(22)]
PROMPTS = [[*SYSTEM, *((13 * i + 5 * j) % 97 for i in range(j + 1))] for j in range(4)]
PROMPTS += [PROMPTS[1][:24], list(PROMPTS[2]), [(3 * i) % 97 for i in range(30)], PROMPTS[3]]
NUM_OUTPUTS = 9
PLAIN = SchedulerConfig("chunked", 3, 16, 4, 64)


@dataclass
class Played:
    tokens: dict[int, list[int]] = field(default_factory=dict)
    num_computed: int = 0
    num_preempted: int = 0
    num_host_blocks: int = 0


def play(config: SchedulerConfig, spec: ModelSpec = MICRO, order: PoolOrder | None = None) -> Played:
    """Every prompt on one engine, a new one every second step."""
    played, todo = Played(), list(enumerate(PROMPTS))
    runner = ModelRunner(spec, config.num_kv_blocks, config.block_size, order=order)
    scheduler = build_scheduler(config, Role.COLOCATED)
    engine = Engine(runner, scheduler, arenas=Arenas(runner.cache, config.num_host_blocks))
    for step in range(1000):
        if todo and step % 2 == 0:
            number, prompt = todo.pop(0)
            scheduler.add(Sequence(number, prompt, NUM_OUTPUTS))
        plan = scheduler.schedule()
        played.num_preempted += len(plan.preempted)
        played.num_host_blocks += sum(sequence.num_promoted for sequence in scheduler.take_placed())
        if not plan.empty:
            played.num_computed += sum(chunk.num_tokens for chunk in plan.prefills)
            for sequence in engine.commit(plan, engine.run(plan)):
                played.tokens[sequence.request_id] = list(sequence.outputs)
                scheduler.release(sequence)
        if len(played.tokens) == len(PROMPTS):
            break
    assert scheduler.num_free_blocks == scheduler.total_blocks
    return played


@pytest.fixture(scope="module")
def expected() -> dict[str, Played]:
    return {"heads": play(PLAIN), "latent": play(PLAIN, LATENT)}


@pytest.mark.parametrize("policy", ["chunked", "prefill_first"])
@pytest.mark.parametrize("model", ["heads", "latent"])
def test_the_tokens_are_those_without_a_cache(policy: Policy, model: str, expected: dict[str, Played]) -> None:
    found = play(replace(PLAIN, policy=policy, prefix_cache=True), LATENT if model == "latent" else MICRO)
    assert found.tokens == expected[model].tokens
    assert found.num_computed < 0.6 * expected[model].num_computed


@pytest.mark.parametrize("blocks_first", [False, True])
def test_a_small_pool_preempts_evicts_and_fetches_without_a_wrong_token(
    blocks_first: bool, expected: dict[str, Played]
) -> None:
    small = replace(PLAIN, num_kv_blocks=14, prefix_cache=True)
    order = PoolOrder(blocks_first, heads_first=blocks_first)
    alone, tiered = play(small, order=order), play(replace(small, num_host_blocks=40), order=order)
    assert alone.tokens == tiered.tokens == expected["heads"].tokens
    assert alone.num_preempted
    assert tiered.num_host_blocks
    assert tiered.num_computed < alone.num_computed


@pytest.mark.parametrize("blocks_first", [False, True])
def test_a_move_takes_all_layers_of_a_block_and_nothing_else(blocks_first: bool) -> None:
    cache = KVCache(MICRO, 5, 4, order=PoolOrder(blocks_first))
    cache.pool.copy_(torch.arange(cache.pool.numel()).view_as(cache.pool))
    before = cache.pool.clone()
    Arenas(cache, 2).move(
        [BlockMove("pool", 3, "host", 1), BlockMove("pool", 0, "pool", 3), BlockMove("host", 1, "pool", 4)]
    )
    assert torch.equal(cache.pool[:, 4], before[:, 3])
    assert torch.equal(cache.pool[:, 3], before[:, 0])
    assert torch.equal(cache.pool[:, :3], before[:, :3])
