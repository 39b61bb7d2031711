"""The decoder equals Hugging Face transformers: logits and greedy tokens, on tiny checkpoints made here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from xpyd.model.checkpoint_config import CheckpointError
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.spec import ModelSpec, RopeScaling

SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "vocab_size": 160,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "initializer_range": 0.3,  # wide weights make attention sharp: a wrong angle shows
}
LLAMA3_ROPE = {  # of the four wavelengths (6, 63, 628, 6283) one is kept, one blended, two divided
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
}
PROMPT = [(7 * i + 3) % 160 for i in range(21)]
NAMED_ONLY = {"num_layers": 1, "hidden_size": 8, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8}


def make_checkpoint(folder: Path, family: str, **save: Any) -> Any:
    kind, extra = FAMILIES[family]
    torch.manual_seed(11)
    config = getattr(transformers, f"{kind}Config")(**SHAPE, **extra)
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():  # norms and biases start as ones and zeros: make them count
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder, **save)
    return model


def runner_on(folder: Path) -> ModelRunner:
    spec = ModelSpec(name="x", intermediate_size=8, vocab_size=8, checkpoint=str(folder), **NAMED_ONLY)
    return ModelRunner(spec, num_blocks=64, block_size=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    theirs = make_checkpoint(tmp_path, family)
    ours = runner_on(tmp_path)
    table = list(range(40, 64))
    with torch.no_grad():
        expected = theirs(torch.tensor([PROMPT])).logits[0, -1]
    found = ours.logits([Segment(PROMPT, 0, table, 0, 0, True)])[0]
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)
    known = list(PROMPT)
    with torch.no_grad():  # the plain definition of greedy: no cache, no generation settings
        for _ in range(12):
            known.append(int(theirs(torch.tensor([known])).logits[0, -1].argmax()))
    assert greedy(ours, table, 12) == known[len(PROMPT) :]


def greedy(runner: ModelRunner, table: list[int], num_tokens: int) -> list[int]:
    known = list(PROMPT)
    sampled = runner.run([Segment(known, 0, table, 0, 0, True)])[0]
    while sampled is not None:
        known.append(sampled.token)
        if len(known) == len(PROMPT) + num_tokens:
            break
        sampled = runner.run([Segment([known[-1]], len(known) - 1, table, 0, 0, True)])[0]
    return known[len(PROMPT) :]


def test_a_sharded_checkpoint_loads(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "whole", "llama")
    make_checkpoint(tmp_path / "sharded", "llama", max_shard_size="60KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    segment = Segment(PROMPT, 0, list(range(8)), 0, 0, True)
    whole, sharded = (runner_on(tmp_path / name).logits([segment]) for name in ("whole", "sharded"))
    torch.testing.assert_close(whole, sharded)  # the same numbers, at other addresses


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama", max_shard_size="60KB")
    victim = sorted(tmp_path.glob("*.safetensors"))[1]
    victim.unlink()
    with pytest.raises(CheckpointError, match=rf"shard {victim.name} is missing"):
        runner_on(tmp_path)


def test_a_wrong_shape_is_named(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "vocab_size": 161}))
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight has shape \[160, 48\], .* asks for \[161, 48\]"):
        runner_on(tmp_path)


def test_a_cut_off_file_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama")
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        runner_on(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type='yarn' is not supported"),
        ({"dtype": "float64"}, "dtype='float64' is not supported"),
        ({"num_key_value_heads": 4}, "num_heads=6 is not a multiple of num_kv_heads=4"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}, "mixes windowed and full layers"),
        ({"model_type": "qwen3"}, r"self_attn.q_norm.weight, of shape \[8\], is not in model.safetensors"),
    ],
)
def test_a_config_that_does_not_suit_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    make_checkpoint(tmp_path, "llama")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(CheckpointError, match=message):
        runner_on(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama")
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor"):
        runner_on(tmp_path)


def test_an_unreadable_index_is_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path, "llama", max_shard_size="60KB")
    (tmp_path / "model.safetensors.index.json").write_text('{"metadata": {}}')
    with pytest.raises(CheckpointError, match=r"index.json: no weight_map"):
        runner_on(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "not JSON"),
        ('{"model_type": "gpt2"}', "model_type='gpt2' is not supported"),
        ('{"model_type": "llama"}', "key 'num_attention_heads' is missing"),
        ("[1]", "no JSON object"),
        ('{"model_type": "llama", "mlp_bias": true}', "mlp_bias=True is not supported"),
        ('{"model_type": "qwen3", "quantization_config": {"bits": 4}}', "quantization_config=.* is not supported"),
        ('{"model_type": "llama", "hidden_act": "gelu"}', "hidden_act='gelu' is not supported"),
    ],
)
def test_a_bad_config_is_refused(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=message):
        runner_on(tmp_path)


def test_a_config_as_transformers_4_wrote_it_is_read(tmp_path: Path) -> None:
    """Most published folders are of that form: rope_theta and torch_dtype at the top, rope_scaling apart."""
    make_checkpoint(tmp_path, "llama-rope-llama3")
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    new_form = runner_on(tmp_path).spec
    scaling = config.pop("rope_parameters")
    old = {"rope_theta": scaling.pop("rope_theta"), "rope_scaling": scaling, "torch_dtype": config.pop("dtype")}
    path.write_text(json.dumps(config | old))
    assert runner_on(tmp_path).spec == new_form
    assert new_form.rope_scaling == RopeScaling("llama3", 4.0, 1.0, 4.0, 128)
