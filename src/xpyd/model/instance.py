"""The runner of one rank in an instance of one or several ranks, whichever way they divide their work."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from xpyd.model.context import ContextRunner, MpiGatherer
from xpyd.model.parallel import reducer_of
from xpyd.model.pipeline import MpiStages, PipelineRunner
from xpyd.model.runner import ModelRunner
from xpyd.model.spec import ModelSpec
from xpyd.placement import Division


def runner_of(
    comm: Any,
    ranks: Sequence[int],
    division: Division,
    num_micro_batches: int | None,
    spec: ModelSpec,
    num_blocks: int,
    block_size: int,
    **options: Any,
) -> ModelRunner:
    """This rank's, in the instance of these ranks of ``comm``, leader first; collective among them.

    ``num_micro_batches`` is for pipelines; the rest is ModelRunner's. Raises what it raises.
    """
    pool = spec, num_blocks, block_size
    if division.width == 1:
        return ModelRunner(*pool, **options)
    if division.kind == "cp":
        return ContextRunner(MpiGatherer(_group(comm, ranks)), "zigzag", *pool, **options)
    if division.kind == "pp":
        return PipelineRunner(MpiStages(_group(comm, ranks)), num_micro_batches, *pool, **options)
    return ModelRunner(*pool, reducer=reducer_of(comm, ranks), **options)


def _group(comm: Any, ranks: Sequence[int]) -> Any:
    return comm.Create_group(comm.group.Incl(list(ranks)), ranks[0])
