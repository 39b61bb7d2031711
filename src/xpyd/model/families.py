"""What sets one model family apart: from its config.json, the fields of ModelSpec that not all families share.

A family is one function and one line in ``FAMILIES``. Each refuses what would load and then compute something else than
the checkpoint's own model; ValueError, KeyError and TypeError are reported with the file's name by the caller.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from xpyd.model.shapes import ExpertsShape, LatentShape

Config = dict[str, Any]  # a config.json
Fields = dict[str, Any]  # of ModelSpec


def _llama(config: Config) -> Fields:
    """Grouped-query attention and a dense MLP: what the families below begin with."""
    heads = int(config["num_attention_heads"])
    return {
        "num_kv_heads": int(config.get("num_key_value_heads") or heads),
        "head_dim": int(config.get("head_dim") or config["hidden_size"] // heads),
    }


def _mistral(config: Config) -> Fields:
    """Its window, where there is one, holds in every layer."""
    window = config.get("sliding_window")
    return {**_llama(config), "sliding_window": int(window) if window else None}


def _qwen2(config: Config) -> Fields:
    _refuse_mixed_windows(config)
    return {**_llama(config), "qkv_bias": bool(config.get("qkv_bias", True))}


def _qwen3(config: Config) -> Fields:
    _refuse_mixed_windows(config)
    return {**_llama(config), "qk_norm": True}


def _mixtral(config: Config) -> Fields:
    experts = ExpertsShape(
        num_experts=int(config["num_local_experts"]),
        num_experts_per_tok=int(config["num_experts_per_tok"]),
        moe_intermediate_size=int(config["intermediate_size"]),
        norm_topk_prob=True,
    )
    return {**_mistral(config), "experts": experts}


def _qwen2_moe(config: Config) -> Fields:
    gated = {"shared_intermediate_size": int(config["shared_expert_intermediate_size"]), "shared_expert_gate": True}
    return {**_qwen2(config), "experts": _qwen_experts(config, gated)}


def _qwen3_moe(config: Config) -> Fields:
    return {**_qwen3(config), "experts": _qwen_experts(config, {})}


def _qwen_experts(config: Config, shared: Fields) -> ExpertsShape:
    for key, plain in (("decoder_sparse_step", 1), ("mlp_only_layers", [])):
        if config.get(key) not in (None, plain):
            raise ValueError(f"{key}={config[key]} puts dense layers between those of experts, which is not supported")
    return ExpertsShape(
        num_experts=int(config["num_local_experts"] if "num_local_experts" in config else config["num_experts"]),
        num_experts_per_tok=int(config["num_experts_per_tok"]),
        moe_intermediate_size=int(config["moe_intermediate_size"]),
        norm_topk_prob=bool(config.get("norm_topk_prob", False)),
        **shared,
    )


def _deepseek_v2(config: Config) -> Fields:
    method = config.get("topk_method", "greedy")
    grouped = method == "group_limited_greedy"
    if method not in ("greedy", "group_limited_greedy"):
        raise ValueError(f"topk_method={method!r} is not supported; greedy and group_limited_greedy are")
    if config.get("norm_topk_prob"):
        raise ValueError("norm_topk_prob=true is not supported for deepseek_v2: transformers ignores it there")
    routing = {"topk_method": method, **(_groups(config) if grouped else {})}
    return _deepseek(config, routing, rope_interleave=True)


def _deepseek_v3(config: Config) -> Fields:
    routing = {"topk_method": "noaux_tc", "norm_topk_prob": bool(config.get("norm_topk_prob", True))}
    for key, only in (("topk_method", "noaux_tc"), ("scoring_func", "sigmoid")):
        if config.get(key, only) != only:
            raise ValueError(f"{key}={config[key]!r} is not supported for deepseek_v3; only {only} is")
    return _deepseek(config, {**routing, **_groups(config)}, bool(config.get("rope_interleave", True)))


def _groups(config: Config) -> Fields:
    return {"n_group": int(config["n_group"]), "topk_group": int(config["topk_group"])}


def _deepseek(config: Config, routing: Fields, rope_interleave: bool) -> Fields:
    """Latent attention, and experts behind the first dense layers."""
    if config.get("moe_layer_freq", 1) != 1:
        raise ValueError(f"moe_layer_freq={config['moe_layer_freq']} is not supported; only 1 is")
    latent = LatentShape(
        kv_lora_rank=int(config["kv_lora_rank"]),
        qk_nope_head_dim=int(config["qk_nope_head_dim"]),
        qk_rope_head_dim=int(config["qk_rope_head_dim"]),
        v_head_dim=int(config["v_head_dim"]),
        q_lora_rank=int(config["q_lora_rank"]) if config.get("q_lora_rank") else None,
        rope_interleave=rope_interleave,
    )
    columns = int(config["moe_intermediate_size"])
    experts = ExpertsShape(
        num_experts=int(config["n_routed_experts"]),
        num_experts_per_tok=int(config["num_experts_per_tok"]),
        moe_intermediate_size=columns,
        routed_scaling_factor=float(config.get("routed_scaling_factor", 1.0)),
        shared_intermediate_size=columns * int(config.get("n_shared_experts") or 0),
        first_k_dense_replace=int(config.get("first_k_dense_replace", 0)),
        **routing,
    )
    return {"num_kv_heads": 1, "head_dim": latent.qk_head_dim, "latent": latent, "experts": experts}


def _refuse_mixed_windows(config: Config) -> None:
    if config.get("sliding_window") and config.get("use_sliding_window"):
        raise ValueError("use_sliding_window=true mixes windowed and full layers, which is not supported")


FAMILIES: dict[str, Callable[[Config], Fields]] = {
    "llama": _llama,
    "mistral": _mistral,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "mixtral": _mixtral,
    "qwen2_moe": _qwen2_moe,
    "qwen3_moe": _qwen3_moe,
    "deepseek_v2": _deepseek_v2,
    "deepseek_v3": _deepseek_v3,
}
