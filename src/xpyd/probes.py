"""The experiments that measure one cost alone: the wire, interference without a wire, and one beside the other."""

from __future__ import annotations

import numpy as np

from xpyd.clock import wait_quietly
from xpyd.config.base import Ranked
from xpyd.config.engine import ExpertParallel, Interference, Scaling
from xpyd.config.wire import Contention, Transfer
from xpyd.entry import Job
from xpyd.model.instance import group_of, runner_of
from xpyd.model.runner import ModelRunner
from xpyd.placement import CLIENT_RANK, Placement, Role, node_names, place
from xpyd.run_dir import RowWriter
from xpyd.trial import write_environment
from xpyd.worker.affinity import Cores, pin_cores
from xpyd.worker.contention import ContentionProbe
from xpyd.worker.expert_scaling import ExpertProbe
from xpyd.worker.interference import measure_gaps
from xpyd.worker.links import Links
from xpyd.worker.scaling import measure_scaling
from xpyd.worker.sweeps import WIRE_BLOCK_BYTES
from xpyd.worker.wire import measure_pair


def run_transfer(config: Transfer, job: Job) -> None:
    """Measure every prefill-decode pair alone, one pair after the other; collective."""
    comm = job.comm
    placement = place(config.placement, node_names(comm))
    cores = pin_cores(comm, config.placement.pin_cores)
    buffer = np.zeros(config.sweep.buffer_bytes, np.uint8) if comm.rank != CLIENT_RANK else None
    links = Links(config.transport, config.fabric, comm, placement, buffer, WIRE_BLOCK_BYTES)
    write_environment(job, placement, cores.mine, links.routes, config.fabric.emulated)
    with RowWriter(job.run_dir, comm.rank) as rows:
        for source in placement.ranks(Role.PREFILL):
            for destination in placement.ranks(Role.DECODE):
                job.say(f"rank {source} -> rank {destination} over {links.routes[f'{source}->{destination}']}")
                if comm.rank in (source, destination):
                    assert buffer is not None
                    measure_pair(links.transport, comm, source, destination, buffer, config.sweep, rows.write)
                rows.flush()
                wait_quietly(comm)
    links.close()


def run_scaling(config: Scaling, job: Job) -> None:
    """Measure steps on instances of every width, one after the other; collective."""
    nodes, _, _ = _without_links(config, job)
    with RowWriter(job.run_dir, job.comm.rank) as rows:
        collectives = config.placement.collectives
        measure_scaling(job.comm, nodes, config.model, config.sweep, collectives, rows.write)


def run_expert_parallel(config: ExpertParallel, job: Job) -> None:
    """Measure steps of every width and variant, one after the other; collective."""
    nodes, _, _ = _without_links(config, job)
    with RowWriter(job.run_dir, job.comm.rank) as rows:
        collectives = config.placement.collectives
        ExpertProbe(job.comm, nodes, config.model, config.sweep, collectives).measure(rows.write)


def run_interference(config: Interference, job: Job) -> None:
    """Measure gaps on every worker at the same time; collective."""
    comm = job.comm
    _, placement, cores = _without_links(config, job)
    with RowWriter(job.run_dir, comm.rank) as rows:
        if comm.rank != CLIENT_RANK:
            pool = config.scheduler
            instance = placement.instance_of(comm.rank)
            runner = runner_of(
                group_of(comm, instance.ranks, config.placement.collectives),
                instance.division,
                None,
                config.model,
                pool.num_kv_blocks,
                pool.block_size,
                in_c=config.placement.alone,
                num_threads=cores.num_threads,
            )
            rows.muted = comm.rank != instance.leader
            for row in measure_gaps(runner, pool.block_size, config.sweep, seed=0):
                rows.write(row)
                rows.flush_if_due()
        wait_quietly(comm)


def run_contention(config: Contention, job: Job) -> None:
    """Measure every prefill-decode pair, one pair after the other; collective."""
    comm = job.comm
    placement = place(config.placement, node_names(comm))
    cores = pin_cores(comm, config.placement.pin_cores)
    runner = None
    if comm.rank != CLIENT_RANK:
        pool = config.scheduler
        runner = ModelRunner(config.model, pool.num_kv_blocks, pool.block_size, num_threads=cores.num_threads)
    links = Links(config.transport, config.fabric, comm, placement, runner.cache.buffer if runner else None)
    write_environment(job, placement, cores.mine, links.routes, config.fabric.emulated)
    with RowWriter(job.run_dir, comm.rank) as rows:
        for source in placement.ranks(Role.PREFILL):
            for destination in placement.ranks(Role.DECODE):
                job.say(f"rank {source} -> rank {destination} over {links.routes[f'{source}->{destination}']}")
                if comm.rank in (source, destination):
                    assert runner is not None
                    peer = destination if comm.rank == source else source
                    probe = ContentionProbe(runner, links.transport, comm, peer, comm.rank == source, config.sweep)
                    probe.measure(rows.write if comm.rank == destination else lambda _: None)
                rows.flush()
                wait_quietly(comm)
    links.close()


def _without_links(config: Ranked, job: Job) -> tuple[list[str], Placement, Cores]:
    """Nodes and roles of the ranks, cores of this one, for what moves no KV; writes environment.json. Collective."""
    nodes = node_names(job.comm)
    placement = place(config.placement, nodes)
    cores = pin_cores(job.comm, config.placement.pin_cores)
    write_environment(job, placement, cores.mine, {}, emulated=False)
    return nodes, placement, cores
