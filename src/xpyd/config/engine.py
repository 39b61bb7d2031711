"""Schemas of the experiments on instances alone: step times, several ranks, codecs."""

from __future__ import annotations

from dataclasses import dataclass

from xpyd.config.base import Experiment, Ranked
from xpyd.config.checks import check_divisions, check_kinds, check_pool
from xpyd.model.checkpoint_config import runnable_spec
from xpyd.scheduler.config import SchedulerConfig
from xpyd.worker.prompts import place_prompts
from xpyd.worker.sweeps import CodecSweep, ExpertSweep, InterferenceSweep, ScalingSweep


@dataclass(frozen=True)
class Codecs(Experiment):
    """Runs in the calling process: both ends of a codec are timed there, the wire between them is modeled."""

    sweep: CodecSweep

    def __post_init__(self) -> None:
        spec = runnable_spec(self.model)
        if self.sweep.max_tokens > spec.max_position_embeddings:
            raise ValueError(
                f"sweep.input_lens up to {max(self.sweep.input_lens)} and sweep.output_len={self.sweep.output_len} "
                f"make {self.sweep.max_tokens} tokens, model {spec.name} knows positions up to "
                f"max_position_embeddings={spec.max_position_embeddings}; shorten one of them"
            )
        place_prompts(self.sweep, spec.vocab_size)  # a file of prompts that cannot be used is refused here


@dataclass(frozen=True)
class Interference(Ranked):
    scheduler: SchedulerConfig  # only its pool: block_size and num_kv_blocks
    sweep: InterferenceSweep

    def __post_init__(self) -> None:
        check_kinds(self.placement, ("tp", "ep"), "interference runs prompts beside decodes on one instance")
        check_divisions(self.placement.divisions, runnable_spec(self.model))
        check_pool(self.scheduler, self.sweep, "sweep.context_len, sweep.num_decode_seqs or sweep.chunk_tokens")


@dataclass(frozen=True)
class Scaling(Ranked):
    sweep: ScalingSweep

    def __post_init__(self) -> None:
        ranks = self.placement.num_workers
        check_divisions({way.division for way in self.sweep.ways}, runnable_spec(self.model))
        if ranks != max(self.sweep.widths):
            raise ValueError(
                f"sweep.widths up to {max(self.sweep.widths)} with {ranks} worker ranks: set placement=1c and "
                f"placement.colocated_tp={max(self.sweep.widths)}"
            )


@dataclass(frozen=True)
class ExpertParallel(Ranked):
    sweep: ExpertSweep

    def __post_init__(self) -> None:
        ranks, widest = self.placement.num_workers, max(self.sweep.widths)
        runnable_spec(self.model).check_expert_parallel(widest)
        if ranks != widest:
            raise ValueError(
                f"sweep.widths up to {widest} with {ranks} worker ranks: set placement=1c and "
                f"placement.colocated_tp={widest}"
            )
        words = self.sweep.num_domains * self.sweep.words_per_domain
        if words > runnable_spec(self.model).vocab_size:
            raise ValueError(
                f"sweep.num_domains={self.sweep.num_domains} x words_per_domain={self.sweep.words_per_domain} exceeds "
                f"model.vocab_size={runnable_spec(self.model).vocab_size}; lower one of the first two"
            )
