"""What runs a step: the engine, its matrix products alone, and transformers with each of its caches.

Every arm makes a ``Step`` of a point; ``reset`` runs before each timed ``run``, outside the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from benchmarks.engine.points import BLOCK_SIZE, Point
from xpyd.kv.cache import DTYPES
from xpyd.model.attention import GroupedAttention
from xpyd.model.mlp import DenseMlp
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.spec import ModelSpec
from xpyd.model.tensors import FEWEST_ROWS, TYPICAL_ROWS

QUERY_ROWS = 256  # of a prefill's attention products: a causal mask leaves them the keys up to their last row


@dataclass(frozen=True)
class Step:
    run: Callable[[], Any]
    reset: Callable[[], Any] = lambda: None


class EngineArm:
    """One step of the model runner, from segments to tokens, over blocks that lie anywhere in the pool."""

    def __init__(self, spec: ModelSpec, num_threads: int, num_blocks: int, device: str = "cpu") -> None:
        self.runner = ModelRunner(spec, num_blocks, BLOCK_SIZE, num_threads=num_threads, device=device)
        self.runner.cache.pool.normal_(generator=torch.Generator(device).manual_seed(1))
        self._order: list[int] = torch.randperm(num_blocks, generator=torch.Generator().manual_seed(2)).tolist()

    def step(self, point: Point) -> Step:
        n, vocab = point.num_blocks, self.runner.spec.vocab_size
        if point.kind == "decode":
            batch = [
                Segment([i % vocab], point.num_tokens, self._order[i * n : (i + 1) * n], 0, 1, True)
                for i in range(point.batch)
            ]
            return Step(lambda: self.runner.run(batch))
        tokens = [(7 * i + 3) % vocab for i in range(point.num_tokens)]
        chunks = [
            Segment(tokens[begin:end], begin, self._order[:n], 0, 0, end == point.num_tokens)
            for begin, end in point.pieces
        ]
        return Step(lambda: [self.runner.run([chunk]) for chunk in chunks])


class Products:
    """The matrix products of a step and nothing else, with the engine's own weights.

    Counted are the four products of every layer with all tokens, the head's with the rows that are sampled, and
    attention's two (scores and values) over contiguous keys and values: they are products of the step too, and the
    only ones that grow with the context. Left out: gathering from blocks, softmax, norms, rotations, gates, sampling.
    """

    def __init__(self, runner: ModelRunner) -> None:
        self._spec = runner.spec
        self._dtype = DTYPES[runner.spec.dtype]
        weights = runner._weights
        layers = []
        for layer in weights.layers:
            assert isinstance(layer.attention, GroupedAttention)
            assert isinstance(layer.mlp, DenseMlp)
            layers += [layer.attention.qkv, layer.attention.o, layer.mlp.gate_up, layer.mlp.down]
        self._packed, self._packed_head = layers, weights.head
        self._plain = [linear.matrix.contiguous() for linear in layers]
        self._plain_head = weights.head.matrix.contiguous()
        self._reordered = [_reordered(matrix) for matrix in (*self._plain, self._plain_head)]

    def packed(self, point: Point) -> Step:
        """With weights, as the engine multiplies."""
        return self._weights(point, self._packed, self._packed_head)

    def plain(self, point: Point) -> Step:
        """With weights, as torch multiplies [out, in] matrices."""
        plain = [lambda x, w=matrix: F.linear(x, w) for matrix in [*self._plain, self._plain_head]]
        return self._weights(point, plain[:-1], plain[-1])

    def reordered(self, point: Point) -> Step:
        """With weights, as oneDNN multiplies with matrices in its own layout."""
        return self._weights(point, self._reordered[:-1], self._reordered[-1])

    def _weights(self, point: Point, layers: list[Any], head: Any) -> Step:
        inputs = [self._random(rows, matrix.shape[1]) for rows in self._rows(point) for matrix in self._plain]
        sampled = self._random(point.batch, self._spec.hidden_size)

        def run() -> None:
            rows = iter(inputs)
            for _ in self._rows(point):
                for linear in layers:
                    linear(next(rows))
            head(sampled)

        return Step(run)

    def _rows(self, point: Point) -> list[int]:
        return [point.batch] if point.kind == "decode" else [end - begin for begin, end in point.pieces]

    def attention(self, point: Point) -> Step:
        """Attention's two products; a prefill's in blocks of query rows, so that little of the masked half is run."""
        spec = self._spec
        kv_heads, group, size = spec.num_kv_heads, spec.num_heads // spec.num_kv_heads, spec.head_dim
        context = point.num_tokens + (point.kind == "decode")
        heads = point.batch * kv_heads
        keys, values = (self._random(spec.num_layers, heads, context, size) for _ in range(2))
        if point.kind == "decode":
            blocks = [(self._random(heads, group, size), context)]
        else:
            blocks = []
            for begin, end in point.pieces:
                for at in range(begin, end, QUERY_ROWS):
                    last = min(at + QUERY_ROWS, end)
                    blocks.append((self._random(heads, group * (last - at), size), last))

        def run() -> None:
            for layer in range(spec.num_layers):
                for queries, seen in blocks:
                    torch.bmm(torch.bmm(queries, keys[layer, :, :seen].transpose(1, 2)), values[layer, :, :seen])

        return Step(run)

    def _random(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape).to(self._dtype)


def _reordered(matrix: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
    """The product with it. One row is padded to four, which reads the matrix faster."""
    weight = torch.ops.mkldnn._reorder_linear_weight(matrix, TYPICAL_ROWS)

    def multiply(x: torch.Tensor) -> torch.Tensor:
        rows = x if len(x) > 1 else x.expand(FEWEST_ROWS, -1)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, None, "none", [], "")
        return product

    return multiply


class TransformersArm:
    """The same weights in transformers, SDPA attention, greedy. Raises ImportError where it is not installed."""

    def __init__(self, folder: Path, dtype: str) -> None:
        import transformers

        self._library = transformers
        self._model = transformers.AutoModelForCausalLM.from_pretrained(
            folder, dtype=DTYPES[dtype], attn_implementation="sdpa"
        ).eval()

    def dynamic(self, point: Point) -> Step:
        """With the cache that grows."""
        return self._step(point, lambda: self._library.DynamicCache(config=self._model.config))

    def static(self, point: Point) -> Step:
        """With the preallocated cache, just as long as the step needs it."""
        length = point.num_tokens + (point.kind == "decode")
        return self._step(point, lambda: self._library.StaticCache(config=self._model.config, max_cache_len=length))

    def _step(self, point: Point, make: Callable[[], Any]) -> Step:
        vocab = self._model.config.vocab_size
        if point.kind == "decode":
            tokens = torch.arange(point.batch)[:, None] % vocab
            return self._decode(point, make(), tokens)
        prompt = torch.tensor([[(7 * i + 3) % vocab for i in range(point.num_tokens)]])
        held: list[Any] = []

        def reset() -> None:
            held[:] = [make()]

        def run() -> int:
            for begin, end in point.pieces:
                logits = self._forward(prompt[:, begin:end], held[0])
            return int(logits.argmax())

        return Step(run, reset)

    def _decode(self, point: Point, cache: Any, tokens: torch.Tensor) -> Step:
        config = self._model.config
        shape = (point.batch, config.num_key_value_heads, point.num_tokens, config.head_dim)
        for layer in range(config.num_hidden_layers):
            cache.update(*(torch.randn(shape).to(self._model.dtype) for _ in range(2)), layer)
        before = [(layer.keys, layer.values) for layer in cache.layers]

        def reset() -> None:
            """Forget the token of the last run: a growing cache made new tensors, a static one counts."""
            for layer, (keys, values) in zip(cache.layers, before, strict=True):
                layer.keys, layer.values = keys, values
                if hasattr(layer, "cumulative_length"):
                    layer.cumulative_length.fill_(point.num_tokens)

        return Step(lambda: self._forward(tokens, cache).argmax(-1).tolist(), reset)

    def _forward(self, tokens: torch.Tensor, cache: Any) -> torch.Tensor:
        logits: torch.Tensor = self._model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1]


def save_checkpoint(runner: ModelRunner, folder: Path) -> None:
    """Write the runner's weights as a checkpoint that transformers loads: Qwen3's with norms of heads, else Llama's."""
    import transformers
    from safetensors.torch import save_file

    spec, weights = runner.spec, runner._weights
    family = "Qwen3" if spec.qk_norm else "Llama"
    config = getattr(transformers, f"{family}Config")(
        hidden_size=spec.hidden_size,
        num_hidden_layers=spec.num_layers,
        num_attention_heads=spec.num_heads,
        num_key_value_heads=spec.num_kv_heads,
        head_dim=spec.head_dim,
        intermediate_size=spec.intermediate_size,
        vocab_size=spec.vocab_size,
        rms_norm_eps=spec.rms_norm_eps,
        max_position_embeddings=spec.max_position_embeddings,
        rope_parameters={"rope_type": "default", "rope_theta": spec.rope_theta},
        tie_word_embeddings=False,
        architectures=[f"{family}ForCausalLM"],
    )
    config.save_pretrained(folder)
    tensors = {"model.embed_tokens.weight": weights.embedding, "model.norm.weight": weights.norm}
    tensors["lm_head.weight"] = weights.head.matrix
    q, kv = spec.num_heads * spec.head_dim, spec.num_kv_heads * spec.head_dim
    for index, layer in enumerate(weights.layers):
        assert isinstance(layer.attention, GroupedAttention)
        assert isinstance(layer.mlp, DenseMlp)
        names = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
        parts = dict(zip(names, torch.split(layer.attention.qkv.matrix, [q, kv, kv]), strict=True))
        parts |= dict(zip(("mlp.gate_proj", "mlp.up_proj"), layer.mlp.gate_up.matrix.chunk(2), strict=True))
        parts |= {"self_attn.o_proj": layer.attention.o.matrix, "mlp.down_proj": layer.mlp.down.matrix}
        norms = {"self_attn.q_norm": layer.attention.q_norm, "self_attn.k_norm": layer.attention.k_norm}
        parts |= {name: norm for name, norm in norms.items() if norm is not None}
        parts |= {"input_layernorm": layer.input_norm, "post_attention_layernorm": layer.post_norm}
        tensors |= {f"model.layers.{index}.{name}.weight": tensor for name, tensor in parts.items()}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
