"""Which part of a model one rank of an instance holds. Plain numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace

from xpyd.model.spec import ModelSpec
from xpyd.placement import Division


@dataclass(frozen=True)
class Shard:
    """Which part of a model rank ``rank`` of an instance of ``width`` tensor-parallel ranks holds.

    Query heads and MLP columns, those of every expert too, are divided (arXiv:1909.08053). KV heads are divided; where
    there are more ranks than KV heads, ``width / num_kv_heads`` neighbouring ranks hold the same one: all ranks the one
    latent. The embedding, norms and routers are whole on every rank; the head's vocabulary is divided. With
    ``whole_experts`` so are experts, the shared ones too.
    """

    rank: int = 0
    width: int = 1
    whole_experts: bool = False

    def part(self, total: int) -> range:
        """This rank's share of ``total`` things in order: equal shares, or as near as whole numbers get."""
        return range(total * self.rank // self.width, total * (self.rank + 1) // self.width)

    def kv_heads(self, num_kv_heads: int) -> range:
        """The KV heads of this rank: its share, or the one that it has a copy of."""
        if self.width <= num_kv_heads:
            return self.part(num_kv_heads)
        head = self.rank * num_kv_heads // self.width
        return range(head, head + 1)

    @property
    def of_experts(self) -> Shard:
        """Which part of each expert that it has."""
        return Shard() if self.whole_experts else self

    def of(self, spec: ModelSpec) -> ModelSpec:
        """The model that this rank computes: fewer heads and columns. Raises ValueError where they do not divide."""
        if self.width == 1:
            return spec
        self._check_divides(spec)
        if spec.num_kv_heads % self.width and self.width % spec.num_kv_heads:
            raise ValueError(
                f"model.num_kv_heads={spec.num_kv_heads} of {spec.name} neither divides among {self.width} "
                f"ranks nor repeats evenly; choose {self._keys} that divide it or are multiples of it"
            )
        experts, inner = spec.experts, self.of_experts.width
        if experts is not None:
            experts = replace(
                experts,
                moe_intermediate_size=experts.moe_intermediate_size // inner,
                shared_intermediate_size=experts.shared_intermediate_size // inner,
            )
        return replace(
            spec,
            experts=experts,
            num_heads=spec.num_heads // self.width,
            num_kv_heads=len(self.kv_heads(spec.num_kv_heads)),
            intermediate_size=spec.intermediate_size // self.width,
        )

    @property
    def _keys(self) -> str:
        kind = "ep" if self.whole_experts else "tp"
        return f"placement.prefill_{kind}, decode_{kind} and colocated_{kind}"

    def _check_divides(self, spec: ModelSpec) -> None:
        divided = {"num_heads": spec.num_heads, "intermediate_size": spec.intermediate_size}
        if spec.experts is not None and not self.whole_experts:
            divided["experts.moe_intermediate_size"] = spec.experts.moe_intermediate_size
            divided["experts.shared_intermediate_size"] = spec.experts.shared_intermediate_size
        for key, value in divided.items():
            if value % self.width:
                raise ValueError(
                    f"model.{key}={value} of {spec.name} does not divide among {self.width} ranks; choose "
                    f"{self._keys} that divide it"
                )


ALONE = Division()


@dataclass(frozen=True)
class Member:
    """What rank ``rank`` of an instance divided by ``division`` holds of the model, and of a request's KV.

    tp: a shard of every layer. pp: a run of whole layers, in equal shares or as near as whole numbers get; the first
    rank has the embedding, the last one the head. cp: the whole model, and the KV of every token. ep: a shard of every
    layer but its experts, of which it has an equal number whole.
    """

    rank: int = 0
    division: Division = ALONE

    @property
    def shard(self) -> Shard:
        """What it holds of each of its layers."""
        if self.division.kind not in ("tp", "ep"):
            return Shard()
        return Shard(self.rank, self.division.width, whole_experts=self.division.kind == "ep")

    def layers(self, num_layers: int) -> range:
        """Its layers."""
        division = self.division
        return Shard(self.rank, division.width).part(num_layers) if division.kind == "pp" else range(num_layers)

    def of(self, spec: ModelSpec) -> ModelSpec:
        """The model that this rank computes. Raises ValueError where it does not divide."""
        if self.division.kind == "ep":
            self._check_experts(spec)
        if self.division.kind != "pp":
            return self.shard.of(spec)
        if spec.num_layers < self.division.width:
            raise ValueError(
                f"model.num_layers={spec.num_layers} of {spec.name} are fewer than {self.division.width} pipeline "
                f"stages; choose placement.decode_pp of {spec.num_layers} at most"
            )
        return replace(spec, num_layers=len(self.layers(spec.num_layers)))

    def _check_experts(self, spec: ModelSpec) -> None:
        width, num_experts = self.division.width, spec.experts.num_experts if spec.experts is not None else 0
        if not num_experts or num_experts % width:
            raise ValueError(
                f"model.experts.num_experts={num_experts} of {spec.name} does not divide among {width} expert-parallel "
                "ranks; choose placement.prefill_ep, decode_ep and colocated_ep that divide it"
                if num_experts
                else f"model.experts=null: {spec.name} has no experts for {width} expert-parallel ranks; choose "
                "prefill_tp, decode_tp and colocated_tp in place of placement.prefill_ep, decode_ep and colocated_ep, "
                "or a model with experts, such as model=tiny_moe"
            )


def members(division: Division) -> list[Member]:
    """Every rank of an instance."""
    return [Member(rank, division) for rank in range(division.width)]
