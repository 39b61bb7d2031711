"""The tensors of a Hugging Face folder, by name and in parts; every fault of a folder is found and named here.

Families name the same tensors differently: the code asks by the names of Qwen3-MoE and DeepSeek, ``ALIASES`` has the
others.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from xpyd.model.checkpoint_config import CheckpointError
from xpyd.model.tensors import Part, Shape

ALIASES = (  # what a file may call it, what the code calls it
    (".block_sparse_moe.", ".mlp."),  # Mixtral, in this line and the next three
    (".w1.", ".gate_proj."),
    (".w2.", ".down_proj."),
    (".w3.", ".up_proj."),
    (".shared_expert.", ".shared_experts."),  # Qwen2-MoE
)


class Checkpoint:
    """The tensors of a Hugging Face folder: one model.safetensors, or shards with an index."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        located = self._locate()
        self._stored = {_name_of(stored): stored for stored in located}  # what a file calls each tensor
        self._files = {name: located[stored] for name, stored in self._stored.items()}

    def get(self, name: str, shape: Shape, part: Part) -> torch.Tensor:
        """Read ``part`` of a tensor, and no more of the file than that.

        Raises CheckpointError for a missing tensor or shard, a wrong shape, an unreadable file.
        """
        path = self._files.get(name)
        if path is None:
            files = ", ".join(sorted({path.name for path in self._files.values()}))
            raise CheckpointError(
                f"{self._folder}: tensor {name}, of shape {list(shape)}, is not in {files}; the checkpoint is "
                "incomplete or its config.json is of another model: download both again"
            )
        try:
            with safe_open(path, framework="pt") as file:
                stored = self._stored[name]
                found: list[int] = file.get_slice(stored).get_shape()
                if tuple(found) == shape:
                    tensor: torch.Tensor = file.get_slice(stored)[part] if part else file.get_tensor(stored)
                    return tensor
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: cannot read tensor {name}: {error}; download the file again") from None
        raise CheckpointError(
            f"{path}: tensor {name} has shape {found}, config.json asks for {list(shape)}; the two are of different "
            "models: download both again"
        )

    def _locate(self) -> dict[str, Path]:
        """The file of every tensor."""
        single, index = self._folder / "model.safetensors", self._folder / "model.safetensors.index.json"
        if index.exists():
            return self._from_index(index)
        if not single.exists():
            raise CheckpointError(
                f"{self._folder} holds neither model.safetensors nor model.safetensors.index.json; xpyd reads "
                "safetensors only"
            )
        try:
            with safe_open(single, framework="pt") as file:
                return dict.fromkeys(file.keys(), single)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{single}: not a whole safetensors file ({error}); download it again") from None

    def _from_index(self, index: Path) -> dict[str, Path]:
        try:
            files: dict[str, str] = dict(json.loads(index.read_text())["weight_map"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{index}: no weight_map in it ({error}); download it again") from None
        missing = sorted({name for name in files.values() if not (self._folder / name).exists()})
        if missing:
            raise CheckpointError(
                f"{self._folder}: shard {', '.join(missing)} is missing, though {index.name} lists it; download it"
            )
        return {tensor: self._folder / name for tensor, name in files.items()}


def _name_of(stored: str) -> str:
    """What the code calls the tensor that a file calls ``stored``."""
    for theirs, ours in ALIASES:
        stored = stored.replace(theirs, ours)
    return stored
