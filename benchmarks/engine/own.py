"""A worker's own work, measured on two ranks: on one machine as a demo has them, and over TCP as nodes do.

mpirun -n 2 python -m mpi4py -m benchmarks.engine.own --run-folder FOLDER (the front, ``benchmarks.engine``, does it)
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine import overhead
from benchmarks.engine.arms import EngineArm
from benchmarks.engine.overhead import Overhead
from benchmarks.engine.points import BLOCK_SIZE, spec_of
from xpyd.config.base import LaunchConfig
from xpyd.launcher import rank_command, rank_environment, supervise
from xpyd.mpi import MPI
from xpyd.placement import CLIENT_RANK
from xpyd.worker.affinity import pin_cores, sharpen_sleeps
from xpyd.worker.mailbox import Mailbox
from xpyd.worker.messages import EndBlock

CLIENTS = {  # by name: what mpirun is told
    "shared memory": (),
    "TCP (loopback)": ("--mca", "btl", "tcp,self", "--mca", "btl_tcp_if_include", "lo"),
}
BATCHES, CONTEXT = (1, 8, 32), 128
ROUNDS, QUICK_ROUNDS = 7, 3
ORDER, FOUND = "order.json", "found.json"
TIMEOUT_S = 1800.0
ROOT = Path(__file__).parents[2]


def measure(models: Sequence[str], dtype: str, num_threads: int, quick: bool, folder: Path) -> list[Overhead]:
    """Every batch of each model, by where the client is. Raises RuntimeError where the ranks failed."""
    found = []
    for model in models:
        for client, options in CLIENTS.items():
            print(f"{model}: own work, client over {client}", file=sys.stderr, flush=True)
            own = folder / "own" / f"{model}-{client.split()[0]}"
            own.mkdir(parents=True)
            order = {"model": model, "client": client, "dtype": dtype, "num_threads": num_threads}
            order["num_rounds"] = QUICK_ROUNDS if quick else ROUNDS
            (own / ORDER).write_text(json.dumps(order))
            command = rank_command(LaunchConfig(args=options), 2, "benchmarks.engine.own", own)
            code = supervise(command, TIMEOUT_S, os.environ | rank_environment(ROOT))
            if code:
                raise RuntimeError(f"the ranks that measure a worker's own work ended with code {code}")
            found += [Overhead(**row) for row in json.loads((own / FOUND).read_text())]
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine.own", description=__doc__)
    parser.add_argument("--run-folder", type=Path, required=True, help=f"holds {ORDER}; {FOUND} is written there")
    folder = parser.parse_args(arguments).run_folder
    order = json.loads((folder / ORDER).read_text())
    comm = MPI.COMM_WORLD
    pin_cores(comm, True)
    sharpen_sleeps()
    mailbox = Mailbox(comm)
    wire = _plain_socket(comm) if CLIENTS[order["client"]] else None
    if comm.rank == CLIENT_RANK:
        overhead.listen(mailbox, wire)
    else:
        (folder / FOUND).write_text(json.dumps([asdict(each) for each in _work(mailbox, comm.rank, wire, **order)]))
        mailbox.send(CLIENT_RANK, EndBlock(abort=False))
        mailbox.drain()
    comm.Barrier()
    mailbox.close()
    return 0


def _plain_socket(comm: Any) -> socket.socket:
    """One between the two ranks; the client's end does not wait. Collective."""
    if comm.rank != CLIENT_RANK:
        wire = socket.create_connection(comm.bcast(None, root=CLIENT_RANK))
        wire.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return wire
    with socket.create_server(("127.0.0.1", 0)) as server:
        comm.bcast(server.getsockname(), root=CLIENT_RANK)
        wire, _ = server.accept()
    wire.setblocking(False)
    return wire


def _work(
    mailbox: Mailbox,
    rank: int,
    wire: socket.socket | None,
    model: str,
    client: str,
    dtype: str,
    num_threads: int,
    num_rounds: int,
) -> list[Overhead]:
    torch.set_num_threads(num_threads)
    longest = CONTEXT + BLOCK_SIZE + overhead.MOST_OUTPUTS
    runner = EngineArm(spec_of(model, dtype), num_threads, (longest // BLOCK_SIZE + 2) * max(BATCHES)).runner
    return [overhead.measure(runner, mailbox, rank, client, batch, CONTEXT, num_rounds, wire) for batch in BATCHES]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
