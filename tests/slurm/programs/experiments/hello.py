"""A tiny experiment for the launch scripts: says where its ranks are; ``fail``, ``die`` and ``wait`` are its faults."""

import json
import os
import signal
import sys
import time

from xpyd.mpi import MPI, leave_together, meet

comm = MPI.COMM_WORLD
nearly_over: list[int] = []
signal.signal(signal.SIGUSR1, lambda number, frame: nearly_over.append(number))
meet()
nodes = comm.gather(MPI.Get_processor_name())
local = comm.gather(comm.Split_type(MPI.COMM_TYPE_SHARED).size)
if comm.rank == 0:
    said = {"nodes": nodes, "local": local, "arguments": sys.argv[1:], "threads": os.environ.get("OMP_NUM_THREADS")}
    print(f"hello {json.dumps(said)}", flush=True)
else:
    print(f"rank {comm.rank} speaks", flush=True)
if "fail" in sys.argv and comm.rank == comm.size - 1:
    raise RuntimeError("planted failure")
if "die" in sys.argv and comm.rank == comm.size - 1:
    os._exit(3)  # without a word to MPI
while "wait" in sys.argv and not comm.allreduce(len(nearly_over), MPI.MIN):  # until the signal has reached every rank
    time.sleep(0.02)
if comm.rank == 0:
    print(f"signals {len(nearly_over)}", flush=True)
leave_together(0)
