"""A random checkpoint whose first layers say almost all: what a good draft brings, without a trained pair of models.

Random weights accept few guesses, a trained model many; how many is that model's own. Here it is planted: what layers
behind the first ``--layers`` add to the residual stream is scaled by ``--rest``, so that ``speculation=layers`` with as
many layers is nearly always right, at the cost that it has. At ``--rest 1`` the model is an ordinary random one.

python -m benchmarks.shallow_checkpoint FOLDER --layers 2 --rest 0.02
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file

NUM_LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM, INNER, VOCAB = 6, 256, 8, 4, 32, 704, 2048  # conf/model/tiny.yaml


def write_checkpoint(folder: Path, num_first: int, rest: float) -> None:
    """A Hugging Face folder of the shape of ``tiny``; the layers from ``num_first`` on count ``rest`` times."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "model_type": "llama",
        "num_hidden_layers": NUM_LAYERS,
        "hidden_size": HIDDEN,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "head_dim": HEAD_DIM,
        "intermediate_size": INNER,
        "vocab_size": VOCAB,
        "rms_norm_eps": 1e-5,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    save_file(dict(_tensors(num_first, rest)), folder / "model.safetensors")


def _tensors(num_first: int, rest: float) -> Iterator[tuple[str, torch.Tensor]]:
    """As the seeded weights of ``xpyd.model.weights``: variance 1 / fan-in, a head of twice that deviation."""
    generator = torch.Generator().manual_seed(0)

    def matrix(rows: int, columns: int, scale: float = 1.0) -> torch.Tensor:
        return torch.randn((rows, columns), generator=generator) * (scale / math.sqrt(columns))

    yield "model.embed_tokens.weight", matrix(VOCAB, HIDDEN, HIDDEN**0.5)
    for number in range(NUM_LAYERS):
        prefix, out = f"model.layers.{number}.", rest if number >= num_first else 1.0
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield f"{prefix}{norm}.weight", torch.ones(HIDDEN)
        for name, heads in (("q", HEADS), ("k", KV_HEADS), ("v", KV_HEADS)):
            yield f"{prefix}self_attn.{name}_proj.weight", matrix(heads * HEAD_DIM, HIDDEN)
        yield f"{prefix}self_attn.o_proj.weight", matrix(HIDDEN, HEADS * HEAD_DIM, out)
        for name in ("gate", "up"):
            yield f"{prefix}mlp.{name}_proj.weight", matrix(INNER, HIDDEN)
        yield f"{prefix}mlp.down_proj.weight", matrix(HIDDEN, INNER, out)
    yield "model.norm.weight", torch.ones(HIDDEN)
    yield "lm_head.weight", matrix(VOCAB, HIDDEN, 2.0)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.shallow_checkpoint", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rest", type=float, default=0.02)
    options = parser.parse_args(arguments)
    write_checkpoint(options.folder, options.layers, options.rest)


if __name__ == "__main__":
    main()
