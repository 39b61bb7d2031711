"""The preflight's way over all ranks: place, gather, probe, judge. Every stage is collective and bounded."""

from __future__ import annotations

import secrets
import shutil
import sys
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from xpyd.clock import synchronise
from xpyd.environment import environment, machine
from xpyd.placement import CLIENT_RANK, Placement, PlacementConfig, PlacementError, Role, node_names, place
from xpyd.preflight import judge_fabric, judge_nodes, judge_pairs, judge_ranks
from xpyd.preflight.facts import NodeFacts, PairFacts, RankFacts
from xpyd.preflight.finding import Finding, Level, Topic
from xpyd.preflight.judge_memory import judge_memory
from xpyd.preflight.judge_nodes import span
from xpyd.preflight.node import gather_node
from xpyd.preflight.options import CheckConfig
from xpyd.preflight.outcome import Pair, Side, merge, with_bandwidth
from xpyd.preflight.pairs import PairProbe, rounds, settle
from xpyd.preflight.show import print_findings, print_ranks, write_findings
from xpyd.preflight.software import gather_ucx, mpi_abi, mpi_library
from xpyd.preflight.watch import Watch
from xpyd.run_dir import RunDir
from xpyd.transport.base import Transport, TransportError
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TransportConfig
from xpyd.worker.affinity import pin_cores

STAGE_S = 60.0  # for what takes a second where all is well
LATER_S = 10.0  # rank 0's watch goes first, since it has the words; the others follow
TOKEN_S = 5.0  # a network file system may show a new file late
TOKEN = "token"


@dataclass(frozen=True)
class Setup:
    """The parts of the configuration that the preflight reads. ``pool_bytes``: the KV pool of one worker."""

    placement: PlacementConfig
    transport: TransportConfig
    fabric: FabricConfig
    check: CheckConfig
    pool_bytes: int
    checkout: Path


class Preflight:
    """One rank's part. ``findings`` grow at rank 0 alone."""

    def __init__(self, setup: Setup, comm: Any, run_dir: RunDir, watch: Watch) -> None:
        self.setup = setup
        self.comm = comm
        self.findings: list[Finding] = []
        self.placement = Placement((Role.CLIENT,), ("",), ())
        self.ranks: list[RankFacts] = []
        self.nodes: dict[str, NodeFacts] = {}
        self.pairs: list[PairFacts] = []
        self._machines: dict[str, dict[str, Any]] = {}
        self._refusal = ""
        self._opened: dict[str, str] = {}
        self._run_dir = run_dir
        self._watch = watch
        watch.expired = self._expired

    def place(self) -> None:
        """Roles by nodes; what placement refuses is kept as a finding, and pairs are probed nevertheless."""
        self._stage("placement", STAGE_S)
        nodes = node_names(self.comm)
        config = self.setup.placement
        try:
            self.placement = place(config, nodes)
        except PlacementError as error:
            self._refusal = str(error)
            try:
                self.placement = place(replace(config, allow_shared_node=True), nodes)
            except PlacementError:  # a wrong number of ranks: without roles there are no pairs
                self.placement = Placement((Role.CLIENT, *[Role.COLOCATED] * (len(nodes) - 1)), tuple(nodes), ())

    def gather(self) -> None:
        """Clocks, then the facts of every rank, and of every node by its first rank."""
        rank = self.comm.rank
        self._stage("the clocks of all ranks", STAGE_S)
        clock = synchronise(self.comm)
        self._stage("the facts of all ranks", STAGE_S)
        cores = pin_cores(self.comm, self.setup.placement.pin_cores)
        first_of_node = self.placement.nodes.index(self.placement.nodes[rank]) == rank
        node = (gather_node(self.setup.checkout), machine()) if first_of_node else None
        seen = self._see_token()
        mine = RankFacts(
            rank=rank,
            node=self.placement.nodes[rank],
            cores=tuple(cores.mine),
            mpi=mpi_library(),
            mpi_abi=mpi_abi(),
            ucx=gather_ucx(rank, self.setup.transport.reports_peer_errors(self.setup.fabric)),
            clock_offset_ns=clock.offset_ns,
            clock_error_ns=clock.error_ns,
            token_seen=seen,
            free_bytes=shutil.disk_usage(self._run_dir.path).free if seen else 0,
        )
        gathered = self.comm.gather((mine, node))
        if gathered is not None:
            (self._run_dir.path / TOKEN).unlink()
            self.ranks = [facts for facts, _ in gathered]
            self.nodes = {facts.node: node[0] for facts, node in gathered if node is not None}
            self._machines = {facts.node: node[1] for facts, node in gathered if node is not None}

    def probe(self) -> None:
        """Connect and echo in rounds of disjoint pairs; then the bandwidth of each pair alone."""
        turns = rounds(self.placement.ranks(Role.PREFILL), self.placement.ranks(Role.DECODE))
        if not turns:
            return
        self._stage("opening the transport", STAGE_S)
        transport, buffer, problem = self._open()
        problems = self.comm.allgather(problem)
        self._opened = {f"{self.placement.nodes[r]} (rank {r})": text for r, text in enumerate(problems)}
        addresses = self.comm.allgather(b"" if transport is None else transport.address())
        sides: dict[Pair, Side] = {}
        probe = PairProbe(transport, self.comm, buffer, self.setup.check) if transport is not None else None
        for turn in turns:
            self._stage(f"the first messages of pairs {turn}", 4 * self.setup.check.timeout_s + STAGE_S)
            pair = next((p for p in turn if self.comm.rank in p and not problems[p[0]] and not problems[p[1]]), None)
            if pair is not None and probe is not None:
                peer = pair[0] if self.comm.rank == pair[1] else pair[1]
                sides[pair] = probe.meet(pair, addresses[peer])
            settle(self.comm, transport)
        met = merge([pair for turn in turns for pair in turn], self.comm.allgather(sides), problems)
        self.pairs = self._measure(met, probe, transport)

    def judge(self) -> list[Finding]:
        """All findings at rank 0; none elsewhere."""
        if self.comm.rank:
            return []
        setup, node_of = self.setup, self.placement.nodes
        wanted = judge_fabric.wants_infiniband(setup.fabric)
        device = {
            rank: pair.route.split("+")[0].rpartition("/")[2]
            for pair in self.pairs
            for rank in (pair.source, pair.destination)
            if pair.route
        }
        self.findings += [
            *judge_ranks.judge_placement(self.placement, setup.placement.name, self._refusal),
            *judge_ranks.judge_mpi(self.ranks),
            *judge_fabric.judge_ucx(self.ranks, needed=setup.transport.name == "ucx"),
            *judge_fabric.judge_infiniband(self.nodes, self.ranks, setup.fabric),
            *(judge_fabric.judge_opened(self._opened) if self._opened else []),
            *judge_fabric.judge_routes(self.pairs, node_of, self.nodes, setup.fabric),
            *judge_pairs.judge_pairs(self.pairs, node_of, setup.check, setup.fabric.rate_gbps),
            *judge_ranks.judge_clocks(self.ranks[1:], setup.check.max_clock_error_s),
            *judge_memory(self.nodes, self.ranks, setup.pool_bytes, wanted),
            *judge_nodes.judge_cores(self.nodes, self.ranks, device),
            *judge_nodes.judge_gpus(self.nodes),
            *judge_nodes.judge_versions(self.nodes),
            *judge_nodes.judge_disk(self.ranks, str(self._run_dir.path.parents[1]), setup.check.min_free_bytes),
        ]
        return self.findings

    def report(self) -> None:
        """Print both tables and write findings.json, at rank 0."""
        roles = [
            "unplaced" if self._refusal and role is Role.COLOCATED else role.value for role in self.placement.roles
        ]
        if self.ranks:
            print_ranks([(r.rank, r.node, roles[r.rank], span(r.cores) or "not pinned") for r in self.ranks])
        print_findings(self.findings)
        sys.stdout.flush()
        write_findings(
            self._run_dir,
            self.findings,
            ranks=[{**asdict(facts), "role": roles[facts.rank]} for facts in self.ranks],
            nodes={name: asdict(facts) for name, facts in self.nodes.items()},
            pairs=[asdict(pair) for pair in self.pairs],
        )

    def finish(self) -> None:
        """Report, and complete the run folder, at rank 0."""
        if self.comm.rank:
            return
        self.report()
        facts = [(list(rank.cores), self._machines[rank.node]) for rank in self.ranks]
        routes = {pair.name: pair.route for pair in self.pairs if pair.route}
        emulated = self.setup.fabric.emulated
        found = environment(self.setup.checkout, self.placement, routes, facts, self.ranks[0].mpi, emulated)
        self._run_dir.write_json("environment.json", found)
        self._run_dir.finish()

    def _open(self) -> tuple[Transport | None, Any, str]:
        """The transport as the fabric asks for it, and why there is none. Every rank, the client too: it may be
        collective.
        """
        buffer = np.zeros(self.setup.check.buffer_bytes if self.comm.rank != CLIENT_RANK else 0, np.uint8)
        try:
            transport = self.setup.transport.build(self.setup.fabric, self.comm)
        except TransportError as error:
            return None, buffer, str(error)
        if self.comm.rank != CLIENT_RANK:
            transport.register(buffer)
        return transport, buffer, ""

    def _measure(self, pairs: list[PairFacts], probe: PairProbe | None, transport: Transport | None) -> list[PairFacts]:
        """Each pair that answered, alone on the wire."""
        done = []
        for pair in pairs:
            if not pair.error and not pair.unprobed:
                self._stage(f"the bandwidth of pair {pair.name}", 4 * self.setup.check.timeout_s + STAGE_S)
                ends = (pair.source, pair.destination)
                side = probe.stream(ends) if probe is not None and self.comm.rank in ends else Side()
                settle(self.comm, transport)
                sides = self.comm.allgather(side)
                pair = with_bandwidth(pair, sides[pair.source], sides[pair.destination], self.setup.check.window_bytes)
            done.append(pair)
        return done

    def _see_token(self) -> bool:
        """Whether this rank reads what rank 0 has just written in the run folder."""
        path = self._run_dir.path / TOKEN
        word = self.comm.bcast(secrets.token_hex(8) if self.comm.rank == 0 else None)
        if self.comm.rank == 0:
            path.write_text(word)
        self.comm.Barrier()
        deadline = time.monotonic() + TOKEN_S
        while time.monotonic() < deadline:
            if path.is_file() and path.read_text() == word:
                return True
            time.sleep(0.1)
        return False

    def _stage(self, name: str, bound_s: float) -> None:
        self._watch.stage(name, bound_s if self.comm.rank == 0 else bound_s + LATER_S)

    def _expired(self, stage: str, bound_s: float) -> None:
        """Called by the watch's thread: the ranks' own is stuck."""
        print(f"error: rank {self.comm.rank}: {stage}: no end after {bound_s:.4g} s", file=sys.stderr, flush=True)
        if self.comm.rank == 0:
            self.findings.append(stuck(stage, bound_s))
            self.report()


def stuck(stage: str, bound_s: float) -> Finding:
    return Finding(
        Topic.MPI,
        "no end",
        Level.ERROR,
        f"{stage}: not done after {bound_s:.4g} s on rank 0; the check ends here",
        "see the other ranks' output: one has died or is stuck; else MPI's own traffic is blocked between nodes",
    )
