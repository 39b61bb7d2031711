"""The decoder equals Hugging Face transformers: logits and greedy tokens, on tiny checkpoints made here."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from xpyd.model.checkpoint_config import CheckpointError
from xpyd.model.runner import ModelRunner, Segment
from xpyd.model.shapes import RopeScaling
from xpyd.model.spec import ModelSpec

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
YARN = {  # of the wavelengths some are kept, some blended, some divided
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "beta_fast": 8.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 64,
}
QWEN_EXPERTS = {"num_experts": 6, "num_experts_per_tok": 3, "moe_intermediate_size": 32}
LATENT = {  # its heads all share what is cached: num_key_value_heads counts the expanded ones
    "num_key_value_heads": 6,
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_nope_head_dim": 12,
    "qk_rope_head_dim": 8,
    "v_head_dim": 10,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "n_shared_experts": 2,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
GROUPS = {"n_group": 4, "topk_group": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama-rope-llama3": ("Llama", {"rope_parameters": LLAMA3_ROPE}),
    "llama-rope-linear": ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0}}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "mistral": ("Mistral", {"sliding_window": None}),
    "mistral-window": ("Mistral", {"sliding_window": 8}),
    "llama-rope-yarn": ("Llama", {"rope_parameters": YARN}),
    "mixtral": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2}),
    "mixtral-window": ("Mixtral", {"num_local_experts": 5, "num_experts_per_tok": 2, "sliding_window": 8}),
    "qwen2-moe": ("Qwen2Moe", QWEN_EXPERTS | {"shared_expert_intermediate_size": 40}),
    "qwen3-moe": ("Qwen3Moe", QWEN_EXPERTS | {"head_dim": 16, "norm_topk_prob": True}),
    "qwen3-moe-unnormed": ("Qwen3Moe", QWEN_EXPERTS | {"head_dim": 16, "norm_topk_prob": False}),
    "deepseek-v2": ("DeepseekV2", LATENT | {"q_lora_rank": None, "routed_scaling_factor": 1.5}),
    "deepseek-v2-groups": ("DeepseekV2", LATENT | GROUPS | {"topk_method": "group_limited_greedy"}),
    "deepseek-v3": ("DeepseekV3", LATENT | GROUPS | {"rope_parameters": YARN | {"mscale": 1.0, "mscale_all_dim": 0.7}}),
    "deepseek-v3-halves": ("DeepseekV3", LATENT | GROUPS | {"rope_interleave": False, "norm_topk_prob": False}),
}
PROMPT = [(7 * i + 3) % 160 for i in range(21)]
NAMED_ONLY = {"num_layers": 1, "hidden_size": 8, "num_heads": 1, "num_kv_heads": 1, "head_dim": 8}


def make_checkpoint(folder: Path, family: str, **save: Any) -> Any:
    kind, extra = FAMILIES[family]
    torch.manual_seed(11)
    config = getattr(transformers, f"{kind}Config")(**(SHAPE | extra))
    config._attn_implementation = "eager"
    model = getattr(transformers, f"{kind}ForCausalLM")(config).float().eval()
    with torch.no_grad():  # norms and biases start as ones and zeros: make them count
        for name, parameter in model.named_parameters():
            if "norm" in name or "bias" in name:
                parameter.add_(0.3 * torch.randn_like(parameter))
        for name, buffer in model.named_buffers():
            if "correction_bias" in name:  # beside sigmoid scores, all within 0 and 1
                buffer.add_(0.2 * torch.randn_like(buffer))
    model.save_pretrained(folder, **save)
    return model


def runner_on(folder: Path) -> ModelRunner:
    spec = ModelSpec(name="x", intermediate_size=8, vocab_size=8, checkpoint=str(folder), **NAMED_ONLY)
    return ModelRunner(spec, num_blocks=64, block_size=4)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_and_greedy_tokens_are_those_of_transformers(tmp_path: Path, family: str) -> None:
    theirs = make_checkpoint(tmp_path, family)
    ours = runner_on(tmp_path)
    assert ours.spec.num_params() == sum(parameter.numel() for parameter in theirs.parameters())
    known = list(PROMPT)
    with torch.no_grad():  # the plain definition of greedy: no cache, no generation settings
        for _ in range(12):
            known.append(int(theirs(torch.tensor([known])).logits[0, -1].argmax()))
        expected = theirs(torch.tensor([known])).logits[0]
    whole = ours.logits([Segment(PROMPT, 0, list(range(8)), 0, 0, True)])
    close(whole[0], expected[len(PROMPT) - 1])
    table = list(range(40, 64))
    ends = [8, 19, *range(len(PROMPT) - 1, len(known) + 1)]  # two chunks, then one token at a time
    for begin, end in itertools.pairwise([0, *ends]):
        found = ours.logits([Segment(known[begin:end], begin, table, 0, 0, True)])[0]
        close(found, expected[end - 1])
        assert end < len(PROMPT) or end == len(known) or int(found.argmax()) == known[end]


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=2e-4, atol=2e-4)


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
        ({"rope_parameters": {"rope_type": "longrope", "factor": 2.0}}, "rope_type='longrope' is not supported"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "original_max_position_embeddings' is missing"),
        ({"dtype": "float64"}, "dtype='float64' is not supported"),
        ({"num_key_value_heads": 4}, "num_heads=6 is not a multiple of num_kv_heads=4"),
        ({"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 8}, "mixes windowed and full layers"),
        ({"model_type": "qwen3"}, r"self_attn.q_norm.weight, of shape \[8\], is not in model.safetensors"),
        ({"model_type": ["llama"]}, r"model_type=\['llama'\] is not supported"),
        ({"num_attention_heads": 0, "head_dim": None}, r"division or modulo by zero; is it whole"),
        ({"num_key_value_heads": -2}, r"num_kv_heads: Input should be greater than 0; is it whole"),
        ({"num_hidden_layers": 2**40}, r"num_layers: Input should be less than"),
        ({"hidden_size": float("inf")}, r"cannot convert float infinity to integer; is it whole"),
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
        ('{"model_type": "llama"}', "key 'num_hidden_layers' is missing"),
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
