"""The ranks: sources first, then as many destinations; every carrier in turn on every case, in a fresh order each time.

mpirun -n 2 python -m mpi4py -m benchmarks.transfer.ranks ORDER.json (the front, ``benchmarks.transfer``, does it)
"""

from __future__ import annotations

import gc
import json
import os
import resource
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

import numpy as np

from benchmarks.transfer.carriers import Carrier, CarrierError, TransportCarrier
from benchmarks.transfer.cases import LAYER_BYTES, SMALLEST_BLOCK_BYTES, Work, cases
from benchmarks.transfer.order import Missing, Order, Sample
from benchmarks.transfer.perftest import PerftestCarrier
from benchmarks.transfer.plain_socket import GATHER_BYTES, SocketCarrier
from xpyd.transport.base import Bytes, TransportError
from xpyd.transport.fabric import FabricConfig
from xpyd.transport.registry import TRANSPORTS, TransportConfig, transport_class

SOCKET_CALL_BYTES = (256 * 1024, GATHER_BYTES, LAYER_BYTES)


class Bench:
    """One rank's side: its pool, its peers, the carriers that work here."""

    def __init__(self, order: Order, comm: Any) -> None:
        self.order, self.comm = order, comm
        self.is_source = comm.rank < order.num_sides
        sides = range(order.num_sides), range(order.num_sides, 2 * order.num_sides)
        self.peers = list(sides[self.is_source])
        self.spin = _pin(comm)
        self.works = [
            Work.plan(case, self.peers, self.is_source)
            for case in cases(order.layers_bytes, order.num_sides, order.quick)
        ]
        pool_bytes = max(work.case.total_bytes for work in self.works) * order.num_sides
        self.buffer: Bytes = np.random.default_rng(comm.rank).integers(0, 256, pool_bytes, dtype=np.uint8)
        self.carriers: list[Carrier] = []
        self.missing: list[Missing] = []

    def open(self) -> None:
        """Every carrier that can be had on all ranks, each checked byte for byte."""
        for name, make in self._makers():
            if self.order.carriers and name not in self.order.carriers:
                continue
            made = self._try(name, make)
            if made is not None and self._try(made.name, lambda made=made: self._check(made)):  # type: ignore[misc]
                self.carriers.append(made)

    def measure(self, write: Callable[[Sample], None]) -> None:
        """Repeat until the time is over. One transfer at a time; the ranks wait for each other before each."""
        begin = time.monotonic()
        repeat = 0
        while repeat < self.order.min_repeats or self.comm.bcast(time.monotonic() - begin < self.order.seconds):
            generator = np.random.default_rng(repeat)
            timed_small: set[str] = set()
            for index in generator.permutation(len(self.works)):
                work = self.works[index]
                able = [c for c in self.carriers if c.takes(work.case, len(self.peers))]
                for carrier in (able[i] for i in generator.permutation(len(able))):
                    small_s = None if carrier.name in timed_small else self._small(carrier)
                    timed_small.add(carrier.name)
                    found = self._time(carrier, work, repeat, small_s)
                    if found is not None:
                        write(found)
            repeat += 1
            self._say(f"{self.order.path}, {self.order.pairs}: repeat {repeat}, {time.monotonic() - begin:.0f} s")

    def _makers(self) -> Iterator[tuple[str, Callable[[], Carrier]]]:
        order, comm = self.order, self.comm
        host = None if order.shared_memory else order.host
        for nbytes in SOCKET_CALL_BYTES:
            yield "socket", lambda n=nbytes: SocketCarrier(self.buffer, comm, self.peers, self.is_source, host, n)  # type: ignore[misc]
        devices = (order.device,) if order.device else ()
        fabric = FabricConfig(order.path, 10.0, order.tls, devices, dict(order.ucx), order.message_bytes)
        if order.num_sides == 1:
            settings = fabric.settings()
            yield "ucx_perftest", lambda: PerftestCarrier(comm, self.peers[0], order.host, settings)
        for name in TRANSPORTS:
            yield name, lambda n=name: self._transport(n, fabric)  # type: ignore[misc]

    def _transport(self, name: str, fabric: FabricConfig) -> TransportCarrier:
        takes_fabric = transport_class(name).capabilities.takes_fabric
        transport = TransportConfig(name).build(fabric if takes_fabric else FabricConfig("auto", 10.0), self.comm)
        transport.register(self.buffer, SMALLEST_BLOCK_BYTES)
        addresses = self.comm.allgather(transport.address())
        transport.connect({peer: addresses[peer] for peer in self.peers})
        return TransportCarrier(transport, self.comm, self.peers, self.spin)

    def _try(self, name: str, act: Callable[[], Any]) -> Any:
        """The result of ``act`` on every rank; None, with the reason kept, where one of them failed."""
        found, reason = None, None
        try:
            found = act()
        except (CarrierError, TransportError, ValueError, OSError) as error:
            reason = str(error)
        reasons = [said for said in self.comm.allgather(reason) if said]
        if reasons:
            self.missing.append(Missing(self.order.path, self.order.pairs, name, reasons[0]))
            return None
        return found

    def _check(self, carrier: Carrier) -> bool:
        """Warm up with the smallest case, and compare what landed with what was sent. Raises CarrierError."""
        work = min((w for w in self.works if carrier.takes(w.case, len(self.peers))), key=lambda w: w.case.total_bytes)
        if not self.is_source:
            self.buffer[:] = 0
        move = carrier.send if self.is_source else carrier.receive
        move(work)
        mine = {peer: self._checksum(work, peer) for peer in self.peers}
        theirs = self.comm.allgather(mine)
        if carrier.verifiable and any(theirs[peer][self.comm.rank] != mine[peer] for peer in self.peers):
            raise CarrierError("bytes arrived changed: wrong checksum")
        return True

    def _checksum(self, work: Work, peer: int) -> int:
        """Of all that goes between this rank and ``peer``, in the order of the plan."""
        found = 0
        for stream in work.streams:
            if stream.peer == peer:
                for offset, nbytes in stream.source if self.is_source else stream.destination:
                    found = zlib.crc32(self.buffer[offset : offset + nbytes].data, found)
        return found

    def _time(self, carrier: Carrier, work: Work, repeat: int, small_s: float | None) -> Sample | None:
        """One transfer; the sample on rank 0, whose time is the slowest destination's."""
        self.comm.Barrier()
        cpu_s = _cpu_s()
        seconds = carrier.send(work) if self.is_source else carrier.receive(work)
        facts = self.comm.gather((seconds, _cpu_s() - cpu_s))
        if facts is None:
            return None
        case, num_pairs = work.case, self.order.num_sides**2
        return Sample(
            path=self.order.path,
            pairs=self.order.pairs,
            case=case.name,
            carrier=carrier.name,
            repeat=repeat,
            num_bytes=case.total_bytes * num_pairs,
            num_pieces=case.num_pieces * num_pairs,
            seconds=max(took for took, _ in facts if took is not None),
            cpu_s=sum(cpu for _, cpu in facts) if carrier.verifiable else None,
            small_s=small_s,
        )

    def _small(self, carrier: Carrier) -> float | None:
        """Between the first source and the first destination alone; told to rank 0."""
        self.comm.Barrier()
        found = carrier.small(self.is_source) if self.comm.rank in (0, self.order.num_sides) else None
        return max((took for took in self.comm.allgather(found) if took is not None), default=None)

    def _say(self, text: str) -> None:
        if self.comm.rank == 0:
            print(f"  {text}", file=sys.stderr, flush=True)


def _pin(comm: Any) -> bool:
    """Pin this rank, also apart from those of other virtual nodes, which share this machine's cores.

    True where every rank has a core to itself.
    """
    cores = sorted(os.sched_getaffinity(0))
    enough = bool(comm.size <= len(cores))
    os.sched_setaffinity(0, {cores[comm.rank if enough else comm.rank * len(cores) // comm.size]})
    return enough


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def _write_line(file: IO[str], row: Sample | Missing) -> None:
    file.write(json.dumps(asdict(row)) + "\n")
    file.flush()


def main(arguments: Sequence[str]) -> None:
    from xpyd.mpi import MPI  # starts MPI

    comm = MPI.COMM_WORLD
    order = Order.load(Path(arguments[0]))
    bench = Bench(order, comm)
    bench.open()
    gc.disable()
    with open(order.samples if comm.rank == 0 else os.devnull, "w") as file:
        for missing in bench.missing:
            _write_line(file, missing)
        bench.measure(lambda sample: _write_line(file, sample))
    for carrier in bench.carriers:
        comm.Barrier()
        carrier.close()


if __name__ == "__main__":
    main(sys.argv[1:])
