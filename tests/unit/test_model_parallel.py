"""A model divided among ranks is the whole model: weights are slices of it, KV and logits are equal within rounding.

Ranks are threads here, and their reducer a list behind a barrier; tests/mpi has the real one.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from xpyd.model.attention import GroupedAttention
from xpyd.model.instance import group_of
from xpyd.model.layer import Layer
from xpyd.model.mlp import DenseMlp
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.shapes import ExpertsShape, LatentShape
from xpyd.model.shard import Shard
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import Linear
from xpyd.model.weights import Weights, load_weights

MICRO = ModelSpec(
    name="micro",
    num_layers=2,
    hidden_size=32,
    num_heads=8,
    num_kv_heads=2,
    head_dim=8,
    intermediate_size=64,
    vocab_size=97,  # does not divide: shares of the head differ by a row
)
WIDTHS = [2, 4, 8]  # as many ranks as KV heads, and more
PROMPTS = [[(13 * i + 5 * j) % 97 for i in range(length)] for j, length in enumerate((19, 33))]
TABLES = [list(range(10)), list(range(40, 60))]


EXPERTS = ExpertsShape(6, 2, 16, shared_intermediate_size=8, shared_expert_gate=True, first_k_dense_replace=1)
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "normed": {"qk_norm": True, "qkv_bias": True, "tie_word_embeddings": True},
    "experts": {"experts": EXPERTS},
    "latent": {"num_kv_heads": 1, "head_dim": 12, "latent": LatentShape(16, 8, 4, 6, q_lora_rank=10)},
}


class Threads:
    """The ranks of one instance as threads: every collective call puts its tensor on a table that all then read."""

    def __init__(self, width: int) -> None:
        self.barrier = threading.Barrier(width, timeout=30)
        self.table: list[torch.Tensor] = [torch.empty(0)] * width

    def exchange(self, rank: int, x: torch.Tensor) -> list[torch.Tensor]:
        self.table[rank] = x
        self.barrier.wait()
        found = list(self.table)
        self.barrier.wait()
        return found


class ThreadReducer:
    def __init__(self, shared: Threads, rank: int) -> None:
        self.shard = Shard(rank, shared.barrier.parties)
        self._shared = shared

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return torch.stack(self._shared.exchange(self.shard.rank, x)).sum(0)

    def join(self, x: torch.Tensor, num_columns: int) -> torch.Tensor:
        joined = torch.cat(self._shared.exchange(self.shard.rank, x), dim=1)
        assert joined.shape[1] == num_columns
        return x if self.shard.rank else joined


def on_ranks(width: int, spec: ModelSpec, work: Callable[[ModelRunner], Any]) -> list[tuple[ModelRunner, Any]]:
    """``work(runner)`` on every rank of an instance at once: each rank's runner and what it got."""
    shared = Threads(width)

    def rank(number: int) -> tuple[ModelRunner, Any]:
        runner = ModelRunner(spec, 64, 4, reducer=ThreadReducer(shared, number))
        return runner, work(runner)

    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(rank, range(width)))


def mixed_steps(runner: ModelRunner) -> torch.Tensor:
    """A whole prompt, then its decode beside a chunk of another prompt; the logits of the second step."""
    runner.run([Segment(PROMPTS[0], 0, TABLES[0], 0, 0, True), Segment(PROMPTS[1][:20], 0, TABLES[1], 0, 0, False)])
    return runner.logits([Segment([3], 19, TABLES[0], 0, 1, True), Segment(PROMPTS[1][20:], 20, TABLES[1], 0, 0, True)])


def greedy(runner: ModelRunner) -> list[int]:
    """20 tokens; followers are told the leader's, as the leader's step plan does, here by running ahead alone."""
    tokens = list(PROMPTS[0])
    start = 0
    for index in range(20):
        drawn = runner.run([Segment(tokens[start:], start, TABLES[0], 0, index, True)])[0]
        start = len(tokens)
        token = torch.tensor([[0.0 if drawn is None else float(drawn.token)]])
        reducer = runner._reducer
        tokens.append(int((reducer.sum(token) if reducer else token).item()))
    return tokens[len(PROMPTS[0]) :]


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_kv_are_those_of_one_rank(width: int, variant: str) -> None:
    spec = replace(MICRO, **VARIANTS[variant])
    alone = ModelRunner(spec, 64, 4)
    expected = mixed_steps(alone)
    ranks = on_ranks(width, spec, mixed_steps)
    torch.testing.assert_close(ranks[0][1], expected, rtol=1e-5, atol=1e-5)
    for runner, _ in ranks:
        heads = runner.shard.kv_heads(spec.num_kv_heads)
        for layer in range(spec.num_layers):
            for mine, whole in zip(kv(runner, layer), kv(alone, layer), strict=True):
                torch.testing.assert_close(mine, whole[:, heads.start : heads.stop], rtol=1e-5, atol=1e-5)


def kv(runner: ModelRunner, layer: int) -> list[torch.Tensor]:
    """Every token of the first table: the planes, each [num_tokens, num_kv_heads, kv_head_dim]."""
    return [plane[:20].clone() for plane in runner.cache.read(layer, torch.tensor(TABLES[0]))]


@pytest.mark.parametrize("width", WIDTHS)
def test_greedy_tokens_are_those_of_one_rank(width: int) -> None:
    expected = greedy(ModelRunner(MICRO, 64, 4))
    assert len(set(expected)) > 5
    for _, tokens in on_ranks(width, MICRO, greedy):
        assert tokens == expected


def parts_of(layer: Layer) -> tuple[GroupedAttention, DenseMlp]:
    assert isinstance(layer.attention, GroupedAttention)
    assert isinstance(layer.mlp, DenseMlp)
    return layer.attention, layer.mlp


def whole_of(shards: list[Weights], spec: ModelSpec) -> Weights:
    """The weights of an instance put together again; what is repeated is taken once."""
    width = len(shards)
    copies = max(1, width // spec.num_kv_heads)
    kv_rows = max(1, spec.num_kv_heads // width) * spec.head_dim

    def layer(number: int) -> Layer:
        parts = [parts_of(shard.layers[number]) for shard in shards]
        attentions, mlps = zip(*parts, strict=True)
        split = (each.qkv.matrix.split([len(each.qkv.matrix) - 2 * kv_rows, kv_rows, kv_rows]) for each in attentions)
        q, k, v = zip(*split, strict=True)
        gates, ups = zip(*(each.gate_up.matrix.chunk(2) for each in mlps), strict=True)
        qkv = Linear(torch.cat([*q, *k[::copies], *v[::copies]]))
        o = Linear(torch.cat([each.o.matrix for each in attentions], 1))
        down = torch.cat([each.down.matrix for each in mlps], 1)
        mlp = DenseMlp(Linear(torch.cat([*gates, *ups])), Linear(down))
        return replace(shards[0].layers[number], attention=replace(attentions[0], qkv=qkv, o=o), mlp=mlp)

    head = Linear(torch.cat([shard.head.matrix for shard in shards]))
    return Weights(shards[0].embedding, [layer(i) for i in range(spec.num_layers)], shards[0].norm, head)


def check_slices(spec: ModelSpec, width: int) -> None:
    whole = load_weights(spec)
    joined = whole_of([load_weights(spec, shard=Shard(rank, width)) for rank in range(width)], spec)
    assert torch.equal(joined.head.matrix, whole.head.matrix)
    assert torch.equal(joined.embedding, whole.embedding)
    for mine, theirs in zip(joined.layers, whole.layers, strict=True):
        assert torch.equal(mine.input_norm, theirs.input_norm)
        assert torch.equal(mine.post_norm, theirs.post_norm)
        for ours, whole_part in zip(parts_of(mine), parts_of(theirs), strict=True):
            for name in ("qkv", "o") if isinstance(ours, GroupedAttention) else ("gate_up", "down"):
                assert torch.equal(getattr(ours, name).matrix, getattr(whole_part, name).matrix), name


@pytest.mark.parametrize("width", WIDTHS)
def test_seeded_weights_are_slices_of_the_whole(width: int) -> None:
    check_slices(MICRO, width)
    check_slices(replace(MICRO, dtype="bfloat16", tie_word_embeddings=True), width)


@pytest.mark.parametrize("width", [2, 4])
def test_a_checkpoint_is_read_in_parts(tmp_path: Path, width: int) -> None:
    whole = load_weights(MICRO)
    tensors = {"model.embed_tokens.weight": whole.embedding, "model.norm.weight": whole.norm}
    tensors["lm_head.weight"] = whole.head.matrix
    kv_rows, rows = MICRO.num_kv_heads * MICRO.head_dim, MICRO.num_heads * MICRO.head_dim
    for number, layer in enumerate(whole.layers):
        attention, mlp = parts_of(layer)
        q, k, v = attention.qkv.matrix.split([rows, kv_rows, kv_rows])
        gate, up = mlp.gate_up.matrix.chunk(2)
        parts = {"self_attn.q_proj": q, "self_attn.k_proj": k, "self_attn.v_proj": v}
        parts |= {"self_attn.o_proj": attention.o.matrix}
        parts |= {"mlp.gate_proj": gate, "mlp.up_proj": up, "mlp.down_proj": mlp.down.matrix}
        parts |= {"input_layernorm": layer.input_norm, "post_attention_layernorm": layer.post_norm}
        tensors |= {f"model.layers.{number}.{name}.weight": part for name, part in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    check_slices(replace(MICRO, checkpoint=str(tmp_path)), width)
    shards = [load_weights(replace(MICRO, checkpoint=str(tmp_path)), shard=Shard(r, width)) for r in range(width)]
    assert torch.equal(
        parts_of(whole_of(shards, MICRO).layers[1])[0].qkv.matrix, parts_of(whole.layers[1])[0].qkv.matrix
    )


def test_shards_name_their_heads() -> None:
    assert [list(Shard(r, 2).kv_heads(4)) for r in range(2)] == [[0, 1], [2, 3]]
    assert [list(Shard(r, 4).kv_heads(2)) for r in range(4)] == [[0], [0], [1], [1]]
    assert [len(Shard(r, 4).part(97)) for r in range(4)] == [24, 24, 24, 25]
    local = Shard(3, 8).of(MICRO)
    assert (local.num_heads, local.num_kv_heads, local.intermediate_size) == (1, 1, 8)
    assert Shard().of(MICRO) is MICRO


@pytest.mark.parametrize(
    ("spec", "width", "message"),
    [
        (replace(MICRO, num_heads=6), 4, r"model\.num_heads=6 of micro does not divide among 4 .*prefill_tp"),
        (replace(MICRO, intermediate_size=66), 4, r"model\.intermediate_size=66 .*among 4"),
        (replace(MICRO, experts=EXPERTS), 3, r"model\.num_heads=8 .*among 3"),
        (replace(MICRO, num_heads=16, experts=EXPERTS), 16, r"model\.experts\.shared_intermediate_size=8 .*among 16"),
        (replace(MICRO, num_heads=12, num_kv_heads=6), 4, r"model\.num_kv_heads=6 .*neither divides among 4"),
    ],
)
def test_what_does_not_divide_is_refused(spec: ModelSpec, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Shard(0, width).of(spec)


def test_collectives_of_host_memory_are_refused_on_a_gpu() -> None:
    with pytest.raises(ValueError, match=r"placement\.collectives=gloo: it moves host memory, .* on cuda; set .*=auto"):
        group_of(None, [1, 2], "gloo", "cuda")
    assert group_of(None, [1], "gloo", "cuda") is None, "one rank exchanges nothing"
