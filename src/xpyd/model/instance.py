"""The runner of one rank in an instance of one or several ranks, whichever way they divide their work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpyd.model.context import ContextRunner
from xpyd.model.group import Group
from xpyd.model.mpi_group import MpiGroup
from xpyd.model.pipeline import GroupStages, PipelineRunner
from xpyd.model.runner import ModelRunner
from xpyd.model.spec import ModelSpec
from xpyd.model.spread import SpreadRunner
from xpyd.placement import Collectives, Division


def runner_of(
    group: Group | None,
    division: Division,
    num_micro_batches: int | None,
    spec: ModelSpec,
    num_blocks: int,
    block_size: int,
    in_c: bool,
    **options: Any,
) -> ModelRunner:
    """This rank's, in the instance whose ranks are ``group``; collective among them.

    ``num_micro_batches`` is for pipelines; the rest is ModelRunner's. ``in_c`` False where an instance of one rank is
    held against one of several, whose steps torch runs. Raises what ModelRunner raises.
    """
    pool = spec, num_blocks, block_size
    if group is None:
        return ModelRunner(*pool, in_c=in_c, **options)
    if division.kind == "cp":
        return ContextRunner(group, "zigzag", *pool, **options)
    if division.kind == "pp":
        return PipelineRunner(GroupStages(group), num_micro_batches, *pool, **options)
    if division.kind == "ep":
        return SpreadRunner(group, *pool, **options)
    return ModelRunner(*pool, reducer=group, **options)


def group_of(comm: Any, ranks: Sequence[int], collectives: Collectives = "auto", device: str = "cpu") -> Group | None:
    """The group of these ranks of ``comm``, leader first, None for one rank alone; collective among them.

    ``auto``: NCCL for tensors on a GPU, else MPI. Raises ValueError for collectives that cannot move the memory of
    ``device``.
    """
    if len(ranks) == 1:
        return None
    on_gpu = device.startswith("cuda")
    if on_gpu and collectives != "auto":
        raise ValueError(
            f"placement.collectives={collectives}: it moves host memory, and the model's tensors are on {device}; set "
            "placement.collectives=auto"
        )
    members = comm.Create_group(comm.group.Incl(list(ranks)), ranks[0])
    if on_gpu or collectives == "gloo":
        from xpyd.model.torch_group import TorchGroup  # it takes a while to import

        return TorchGroup(members, "nccl" if on_gpu else "gloo")
    return MpiGroup(members)
