"""The shape of a Hugging Face checkpoint folder, read from its config.json. No torch: front ends use it too."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, cast, get_args, get_type_hints

from pydantic import TypeAdapter, ValidationError

from xpyd.model.families import FAMILIES
from xpyd.model.shapes import RopeScaling
from xpyd.model.spec import DTYPE_BYTES, Dtype, ModelSpec


class CheckpointError(ValueError):
    """A checkpoint folder that cannot be used; the message names file, tensor or key, and the remedy."""


def resolve_spec(spec: ModelSpec) -> ModelSpec:
    """``spec`` itself, or the shape found in its checkpoint folder. Raises CheckpointError."""
    if spec.checkpoint is None:
        return spec
    folder = Path(spec.checkpoint)
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise CheckpointError(
            f"model.checkpoint={spec.checkpoint}: cannot read {path} ({error.strerror}); give a Hugging Face folder "
            "with config.json and *.safetensors"
        ) from None
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}; was the download cut off?") from None
    if not isinstance(config, dict):
        raise CheckpointError(f"{path} holds no JSON object; was it overwritten? Download it again")
    _check_supported(config, path)
    return _spec_of(config, folder, path, spec.seed)


def runnable_spec(spec: ModelSpec) -> ModelSpec:
    """``resolve_spec`` where weights will be asked for: raises ValueError too for a shape that cannot be run."""
    resolved = resolve_spec(spec)
    resolved.check_runs()
    return resolved


def _check_supported(config: dict[str, Any], path: Path) -> None:
    """Refuse what would load and then compute something else than the checkpoint's own model."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise CheckpointError(f"{path}: model_type={kind!r} is not supported; supported are {', '.join(FAMILIES)}")
    for key in ("attention_bias", "mlp_bias", "quantization_config"):
        if config.get(key):
            raise CheckpointError(f"{path}: {key}={config[key]!r} is not supported; use a checkpoint without it")
    activation = config.get("hidden_act", "silu")
    if activation != "silu":
        raise CheckpointError(f"{path}: hidden_act={activation!r} is not supported; only silu is")


def _spec_of(config: dict[str, Any], folder: Path, path: Path, seed: int) -> ModelSpec:
    try:
        found = {
            "name": folder.name,
            "num_layers": int(config["num_hidden_layers"]),
            "hidden_size": int(config["hidden_size"]),
            "num_heads": int(config["num_attention_heads"]),
            "intermediate_size": int(config["intermediate_size"]),
            "vocab_size": int(config["vocab_size"]),
            "max_position_embeddings": int(config.get("max_position_embeddings", 32768)),
            "rope_theta": _rope_theta(config),
            "rope_scaling": _rope_scaling(config, path),
            "rms_norm_eps": float(config.get("rms_norm_eps", 1e-6)),
            "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
            "dtype": _dtype(config, path),
            "checkpoint": str(folder),
            "seed": seed,
            **FAMILIES[config["model_type"]](config),
        }
        return TypeAdapter(ModelSpec).validate_python(found)
    except KeyError as error:
        raise CheckpointError(f"{path}: key {error} is missing; download it again") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        what = [*(str(part) for part in wrong["loc"]), wrong["msg"].removeprefix("Value error, ")]
        raise CheckpointError(f"{path}: {': '.join(what)}; is it whole? Download it again") from None
    except (TypeError, ValueError, ArithmeticError, AttributeError) as error:  # a list where a number should be, 0, inf
        raise CheckpointError(f"{path}: {error}; is it whole? Download it again") from None


def _rope_theta(config: dict[str, Any]) -> float:
    """``rope_theta``, at the top (transformers 4) or inside ``rope_parameters`` (5)."""
    parameters = config.get("rope_parameters") or {}
    return float(parameters.get("rope_theta") or config.get("rope_theta") or 10000.0)


def _rope_scaling(config: dict[str, Any], path: Path) -> RopeScaling | None:
    scaling = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = scaling.get("rope_type") or scaling.get("type") or "default"
    if kind == "default":
        return None
    supported = get_args(get_type_hints(RopeScaling)["rope_type"])
    if kind not in supported:
        raise CheckpointError(
            f"{path}: rope_type={kind!r} is not supported; supported are default, {', '.join(supported)}"
        )
    if kind == "yarn" and "original_max_position_embeddings" not in scaling:
        raise KeyError("original_max_position_embeddings")
    known = {field.name for field in fields(RopeScaling)} - {"rope_type"}
    given = {key: value for key, value in scaling.items() if key in known and value is not None}
    return RopeScaling(cast(Literal["linear", "llama3", "yarn"], kind), **given)


def _dtype(config: dict[str, Any], path: Path) -> Dtype:
    name = config.get("dtype") or config.get("torch_dtype") or "float32"
    if not isinstance(name, str) or name not in DTYPE_BYTES:
        raise CheckpointError(f"{path}: dtype={name!r} is not supported; supported are {', '.join(DTYPE_BYTES)}")
    return cast(Dtype, name)
