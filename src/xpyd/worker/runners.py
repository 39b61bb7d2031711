"""The models of a rank: one for each instance that it is part of in some arm, and the drafts that guess for them."""

from __future__ import annotations

from typing import Any

from xpyd.model.instance import group_of, runner_of
from xpyd.model.runner import ModelRunner
from xpyd.model.spec import ModelSpec
from xpyd.placement import Instance, Kind, Role
from xpyd.worker.block import Setup
from xpyd.worker.shards import instance_blocks
from xpyd.worker.speculation import draft_runner


class Runners:
    """Each is made when it is first asked for: by all ranks of its instance, in the same block."""

    def __init__(self, setup: Setup, comm: Any, spec: ModelSpec, num_threads: int, tier_bytes: int) -> None:
        """``tier_bytes``: registered beside the pool for what moves between its tiers."""
        self._setup, self._comm, self._spec = setup, comm, spec
        self._num_threads, self._tier_bytes = num_threads, tier_bytes
        self._found: dict[tuple[Kind, tuple[int, ...]], ModelRunner] = {}
        self._drafts: dict[ModelRunner, ModelRunner | None] = {}  # by the model that they guess for

    def of(self, instance: Instance) -> ModelRunner:
        """This rank's shard of the model, and its pool."""
        key = instance.kind, instance.ranks
        if key not in self._found:
            self._found[key] = self._make(instance)
        return self._found[key]

    def draft_of(self, instance: Instance) -> ModelRunner | None:
        """The draft that this rank guesses with; by leaders alone, and not where prompts end with their only token."""
        if self._comm.rank != instance.leader or instance.role is Role.PREFILL:
            return None
        runner = self.of(instance)
        if runner not in self._drafts:
            self._drafts[runner] = draft_runner(self._setup.speculation, runner, self._num_threads)
        return self._drafts[runner]

    def _make(self, instance: Instance) -> ModelRunner:
        setup, division = self._setup, instance.division
        return runner_of(
            group_of(self._comm, instance.ranks, setup.placement.collectives),
            division,
            setup.placement.decode_micro_batches,
            self._spec,
            instance_blocks(self._spec, division, setup.scheduler.num_kv_blocks),
            setup.scheduler.block_size,
            in_c=setup.placement.alone,
            sampling=setup.sampling,
            num_threads=self._num_threads,
            order=setup.transfer.order,
            staging_bytes=setup.transfer.registered_staging_bytes + self._tier_bytes,
        )
