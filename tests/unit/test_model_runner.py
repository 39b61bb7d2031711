"""One model, many ways to run it: chunks, pages, batches and mixed steps all give the same logits and tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from xpyd.model.experts import Experts
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.sampling import sample
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.shapes import ExpertsShape, LatentShape
from xpyd.model.spec import ModelSpec

MICRO = ModelSpec(
    name="micro",
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=64,
    vocab_size=97,
)
PROMPTS = [[(13 * i + 5 * j) % 97 for i in range(length)] for j, length in enumerate((19, 4, 33))]
TABLES = [list(range(10)), [31, 12], [20, 50, 22, 48, 24, 46, 26, 44, 28]]


EXPERTS = ExpertsShape(8, 3, 16, topk_method="noaux_tc", n_group=4, topk_group=2, shared_intermediate_size=8)
LATENT = replace(MICRO, num_kv_heads=1, head_dim=12, latent=LatentShape(16, 8, 4, 6, q_lora_rank=10))
every_kind = pytest.mark.parametrize(
    "spec", [MICRO, replace(MICRO, experts=EXPERTS), LATENT], ids=["grouped", "experts", "latent"]
)


def runner(spec: ModelSpec = MICRO) -> ModelRunner:
    return ModelRunner(spec, num_blocks=64, block_size=4)


def segment(tokens: list[int], start: int, table: list[int]) -> Segment:
    return Segment(tokens, start, table, seed=0, index=0, samples=True)


def close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@every_kind
@pytest.mark.parametrize("cuts", [[7], [1, 2], [4, 8, 16], [32]])
def test_prefill_in_chunks_is_prefill_whole(cuts: list[int], spec: ModelSpec) -> None:
    prompt, table = PROMPTS[2], TABLES[2]
    whole = runner(spec).logits([segment(prompt, 0, table)])
    chunked = runner(spec)
    for begin, end in zip([0, *cuts], [*cuts, len(prompt)], strict=True):
        last = chunked.logits([segment(prompt[begin:end], begin, table)])
    close(last, whole)


def test_paged_is_contiguous() -> None:
    prompt = PROMPTS[2]
    contiguous, paged = runner(), runner()
    straight, scattered = list(range(9)), TABLES[2]
    for engine, table in ((contiguous, straight), (paged, scattered)):
        engine.run([segment(prompt, 0, table)])
    close(
        contiguous.logits([segment([5], len(prompt), straight)]), paged.logits([segment([5], len(prompt), scattered)])
    )


@every_kind
def test_a_batch_of_unequal_lengths_is_each_alone(spec: ModelSpec) -> None:
    together, alone = runner(spec), runner(spec)
    for engine in (together, alone):
        for prompt, table in zip(PROMPTS, TABLES, strict=True):
            engine.run([segment(prompt, 0, table)])
    steps = [segment([j], len(prompt), table) for j, (prompt, table) in enumerate(zip(PROMPTS, TABLES, strict=True))]
    close(together.logits(steps), torch.cat([alone.logits([step]) for step in steps]))


@every_kind
def test_a_mixed_step_is_its_parts(spec: ModelSpec) -> None:
    mixed, parts = runner(spec), runner(spec)
    for engine in (mixed, parts):
        engine.run([segment(PROMPTS[0], 0, TABLES[0])])
    decode = segment([3], len(PROMPTS[0]), TABLES[0])
    chunk = segment(PROMPTS[2], 0, TABLES[2])
    close(mixed.logits([decode, chunk]), torch.cat([parts.logits([decode]), parts.logits([chunk])]))


def test_results_come_in_the_order_given() -> None:
    engine = runner()
    engine.run([segment(PROMPTS[0], 0, TABLES[0])])
    decode, chunk = segment([3], len(PROMPTS[0]), TABLES[0]), segment(PROMPTS[2], 0, TABLES[2])
    silent = Segment(PROMPTS[1], 0, TABLES[1], 0, 0, samples=False)
    logits = engine.logits([chunk, silent, decode])
    close(logits, torch.cat([engine.logits([chunk]), engine.logits([decode])]))
    first = engine.run([chunk, silent, decode])
    again = [engine.run([chunk])[0], engine.run([decode])[0]]
    assert first[1] is None
    assert [s.token for s in (first[0], first[2]) if s] == [s.token for s in again if s]


def test_layers_are_announced_when_their_kv_is_in_the_pool() -> None:
    engine = runner()
    filled = []
    engine.run(
        [segment(PROMPTS[1], 0, [5])],
        lambda layer: filled.append([bool(engine.cache.pool[i, 5].any()) for i in (0, 1)]),
    )
    assert filled == [[True, False], [True, True]]


def test_same_seed_same_weights() -> None:
    step = segment(PROMPTS[0], 0, TABLES[0])
    assert torch.equal(runner().logits([step]), runner().logits([step]))


@pytest.mark.parametrize("spec", [MICRO, LATENT], ids=["grouped", "latent"])
def test_every_tensor_of_a_step_is_on_the_device(spec: ModelSpec) -> None:
    """The meta device computes nothing, but refuses to mix with tensors that were left on the CPU.

    Experts cannot run there: how many tokens each gets is a matter of numbers.
    """
    engine = ModelRunner(spec, num_blocks=64, block_size=4, device="meta")
    decode, chunk = segment([3], 19, TABLES[0]), segment(PROMPTS[2][8:], 8, TABLES[2])
    assert engine.logits([decode, chunk]).device.type == "meta"


def test_a_router_is_in_float32_whatever_the_model_is() -> None:
    engine = runner(replace(MICRO, experts=EXPERTS, dtype="bfloat16"))
    logits = engine.logits([segment(PROMPTS[0], 0, TABLES[0])])
    mlp = engine._weights.layers[0].mlp
    assert isinstance(mlp, Experts)
    assert (mlp.experts[0].down.dtype, mlp.router.weight.dtype) == (torch.bfloat16, torch.float32)
    assert mlp.router.route(torch.ones(1, 32, dtype=torch.bfloat16))[0].dtype == torch.float32
    exact = runner(replace(MICRO, experts=EXPERTS)).logits([segment(PROMPTS[0], 0, TABLES[0])])
    assert float(torch.corrcoef(torch.cat((logits, exact)))[0, 1]) > 0.99


def test_a_shape_that_cannot_run_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"model=micro is a shape for experiments.economics only: sinks are not"):
        ModelRunner(replace(MICRO, shape_only="sinks are"), num_blocks=4, block_size=4)


def test_random_weights_give_varied_tokens_at_clear_margins() -> None:
    engine = runner()
    drawn = engine.run([segment(PROMPTS[0], 0, TABLES[0])])
    for position in range(len(PROMPTS[0]), 40):
        last = drawn[-1]
        assert last is not None
        drawn += engine.run([segment([last.token], position, TABLES[0])])
    found = [each for each in drawn if each is not None]
    assert len({each.token for each in found}) > 8
    assert float(np.median([each.margin for each in found])) > 0.05


def test_sampling_depends_on_seed_and_index_alone() -> None:
    logits = torch.randn(3, 97, generator=torch.Generator().manual_seed(1))
    config = SamplingConfig(temperature=1.0, top_k=20)
    seeds = [(4, 0), (4, 1), (9, 0)]
    forward = sample(logits, config, seeds)
    backward = sample(logits.flip(0), config, seeds[::-1])
    assert forward == backward[::-1]
    same = logits[:1].repeat(50, 1)
    for varied in ([(i, 0) for i in range(50)], [(4, i) for i in range(50)]):
        assert len({each.token for each in sample(same, config, varied)}) > 5


def test_sampling_follows_the_softmax() -> None:
    logits = torch.log(torch.tensor([[0.7, 0.2, 0.1]])).repeat(4000, 1)
    drawn = [s.token for s in sample(logits, SamplingConfig(temperature=1.0), [(i, 0) for i in range(4000)])]
    shares = np.bincount(drawn, minlength=3) / 4000
    np.testing.assert_allclose(shares, [0.7, 0.2, 0.1], atol=0.03)


def test_top_k_without_a_temperature_is_refused() -> None:
    with pytest.raises(ValueError, match=r"top_k=5 with temperature=0"):
        SamplingConfig(top_k=5)


def test_top_k_keeps_the_k_likeliest() -> None:
    logits = torch.arange(6.0).repeat(300, 1)
    drawn = sample(logits, SamplingConfig(temperature=3.0, top_k=2), [(i, 0) for i in range(300)])
    assert {each.token for each in drawn} == {4, 5}


def test_greedy_reports_its_margin() -> None:
    found = sample(torch.tensor([[1.0, 3.5, 3.0]]), SamplingConfig(), [(0, 0)])[0]
    assert (found.token, found.margin) == (1, 0.5)
