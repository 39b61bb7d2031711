"""The dense MLP. Its columns are divided among the ranks of an instance."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from xpyd.model.shard import Shard
from xpyd.model.tensors import Linear, Take, fuse, gated, rows_of


@dataclass(frozen=True)
class DenseMlp:
    """SwiGLU (arXiv:2002.05202): ``down(silu(gate(h)) * up(h))``."""

    gate_up: Linear  # [2 * intermediate_size, hidden_size]
    down: Linear  # [hidden_size, intermediate_size]

    @classmethod
    def load(cls, take: Take, prefix: str, hidden: int, inner: int, shard: Shard) -> DenseMlp:
        """This rank's part of an MLP of ``inner`` columns."""
        columns = rows_of(shard.part(inner))
        return cls(
            gate_up=fuse([take(f"{prefix}{n}_proj.weight", inner, hidden, part=(columns,)) for n in ("gate", "up")]),
            down=fuse([take(f"{prefix}down_proj.weight", hidden, inner, part=(slice(None), columns))]),
        )

    def run(self, h: torch.Tensor) -> torch.Tensor:
        return self.down(gated(self.gate_up(h)))
