"""Which part of a model one rank of a tensor-parallel instance holds. Floor 0: plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xpyd.model.spec import ModelSpec


@dataclass(frozen=True)
class Shard:
    """Which part of a model rank ``rank`` of an instance of ``width`` tensor-parallel ranks holds.

    Query heads and MLP columns, those of every expert too, are divided (arXiv:1909.08053). KV heads are divided; where
    there are more ranks than KV heads, ``width / num_kv_heads`` neighbouring ranks hold the same one: all ranks the one
    latent. The embedding, norms and routers are whole on every rank; the head's vocabulary is divided.
    """

    rank: int = 0
    width: int = 1

    def part(self, total: int) -> range:
        """This rank's share of ``total`` things in order: equal shares, or as near as whole numbers get."""
        return range(total * self.rank // self.width, total * (self.rank + 1) // self.width)

    def kv_heads(self, num_kv_heads: int) -> range:
        """The KV heads of this rank: its share, or the one that it has a copy of."""
        if self.width <= num_kv_heads:
            return self.part(num_kv_heads)
        head = self.rank * num_kv_heads // self.width
        return range(head, head + 1)

    def of(self, spec: ModelSpec) -> ModelSpec:
        """The model that this rank computes: fewer heads and columns. Raises ValueError where they do not divide."""
        if self.width == 1:
            return spec
        self._check_divides(spec)
        if spec.num_kv_heads % self.width and self.width % spec.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads={spec.num_kv_heads} of {spec.name} neither divides among {self.width} "
                f"tensor-parallel ranks nor repeats evenly; choose placement.prefill_tp, decode_tp and colocated_tp "
                "that divide it or are multiples of it"
            )
        experts = spec.experts and replace(
            spec.experts,
            moe_intermediate_size=spec.experts.moe_intermediate_size // self.width,
            shared_intermediate_size=spec.experts.shared_intermediate_size // self.width,
        )
        return replace(
            spec,
            experts=experts,
            num_heads=spec.num_heads // self.width,
            num_kv_heads=len(self.kv_heads(spec.num_kv_heads)),
            intermediate_size=spec.intermediate_size // self.width,
        )

    def _check_divides(self, spec: ModelSpec) -> None:
        divided = {"num_heads": spec.num_heads, "intermediate_size": spec.intermediate_size}
        if spec.experts is not None:
            divided["experts.moe_intermediate_size"] = spec.experts.moe_intermediate_size
            divided["experts.shared_intermediate_size"] = spec.experts.shared_intermediate_size
        for key, value in divided.items():
            if value % self.width:
                raise ValueError(
                    f"model.{key}={value} of {spec.name} does not divide among {self.width} "
                    "tensor-parallel ranks; choose placement.prefill_tp, decode_tp and colocated_tp that divide it"
                )
