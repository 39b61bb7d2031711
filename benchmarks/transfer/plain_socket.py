"""The limit: a plain stream socket, blocking, with large buffers; nothing between the pool and the kernel.

Small pieces are gathered into one system call (sendmsg, recvmsg_into), as good code for sockets does.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Sequence
from time import perf_counter_ns
from typing import Any

from benchmarks.transfer.carriers import GO_TAG, NUM_SMALL, SMALL_BYTES, TIMEOUT_S, Carrier
from benchmarks.transfer.cases import LAYERS, Case, Work
from xpyd.kv.layout import Span
from xpyd.transport.base import Bytes
from xpyd.units import MIB, NS_PER_S, format_bytes

GATHER_BYTES = MIB
SEND_BUFFER_BYTES = 4 * MIB  # the kernel's limit (net.core.wmem_max) may be lower


class SocketCarrier(Carrier):
    """One connection per pair of ranks; whole layers go in calls of ``call_bytes``."""

    def __init__(
        self, buffer: Bytes, comm: Any, peers: Sequence[int], is_source: bool, host: str | None, call_bytes: int
    ) -> None:
        """``host``: the address that destinations listen on; None: Unix sockets, inside one node."""
        self.name = f"socket {format_bytes(call_bytes)}"
        self._pool = memoryview(buffer.data)
        self._comm, self._call_bytes = comm, call_bytes
        self._connections = _connect(comm, peers, is_source, host)

    def takes(self, case: Case, num_peers: int) -> bool:
        return case.pattern is LAYERS or self._call_bytes == GATHER_BYTES

    def send(self, work: Work) -> None:
        def send_all(peer: int) -> None:
            spans = [span for stream in work.streams if stream.peer == peer for span in stream.source]
            for views in self._calls(spans):
                _send(self._connections[peer], views)

        for peer in work.peers:
            self._comm.recv(source=peer, tag=GO_TAG)
        _at_once(send_all, work.peers)

    def receive(self, work: Work) -> float:
        def receive_all(peer: int) -> None:
            spans = [span for stream in work.streams if stream.peer == peer for span in stream.destination]
            for views in self._calls(spans):
                _receive(self._connections[peer], views)

        begin_ns = perf_counter_ns()
        for peer in work.peers:
            self._comm.send(None, dest=peer, tag=GO_TAG)
        _at_once(receive_all, work.peers)
        return (perf_counter_ns() - begin_ns) / NS_PER_S

    def small(self, is_source: bool) -> float | None:
        connection = next(iter(self._connections.values()))
        view = [self._pool[:SMALL_BYTES]]
        begin_ns = perf_counter_ns()
        for turn in range(2 * NUM_SMALL):
            (_send if is_source == (turn % 2 == 0) else _receive)(connection, view)
        return (perf_counter_ns() - begin_ns) / NS_PER_S / (2 * NUM_SMALL)

    def close(self) -> None:
        for connection in self._connections.values():
            connection.close()

    def _calls(self, spans: Sequence[Span]) -> list[list[memoryview]]:
        """The pieces of each system call: large spans in parts of ``call_bytes``, small ones gathered."""
        calls: list[list[memoryview]] = []
        room = 0
        for offset, nbytes in spans:
            for begin in range(offset, offset + nbytes, self._call_bytes):
                view = self._pool[begin : min(begin + self._call_bytes, offset + nbytes)]
                if view.nbytes > room:
                    calls.append([])
                    room = max(self._call_bytes, view.nbytes)
                calls[-1].append(view)
                room -= view.nbytes
        return calls


def _connect(comm: Any, peers: Sequence[int], is_source: bool, host: str | None) -> dict[int, socket.socket]:
    """A connection to each peer: destinations listen and tell where, sources connect and say who they are."""
    family = socket.AF_UNIX if host is None else socket.AF_INET
    found: dict[int, socket.socket] = {}
    with socket.socket(family, socket.SOCK_STREAM) as listener:
        if not is_source:
            listener.bind("" if host is None else (host, 0))  # "": an abstract name of the kernel's choice
            listener.listen()
        listener.settimeout(TIMEOUT_S)
        addresses = comm.allgather(None if is_source else listener.getsockname())
        for peer in peers:
            if is_source:
                connection = socket.socket(family, socket.SOCK_STREAM)
                connection.connect(addresses[peer])
                connection.sendall(bytes([comm.rank]))
                found[peer] = connection
            else:
                connection, _ = listener.accept()
                found[connection.recv(1)[0]] = connection
        for connection in found.values():
            connection.settimeout(None)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
            if host is not None:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        comm.Barrier()  # listeners close
    return found


def _at_once(act: Callable[[int], None], peers: Sequence[int]) -> None:
    """``act`` on every peer, a thread each: blocking calls release Python's lock."""
    threads = [threading.Thread(target=act, args=(peer,)) for peer in peers[1:]]
    for thread in threads:
        thread.start()
    act(peers[0])
    for thread in threads:
        thread.join()


def _send(connection: socket.socket, views: list[memoryview]) -> None:
    if len(views) == 1:
        connection.sendall(views[0])
        return
    sent = connection.sendmsg(views)
    for view in views:  # the kernel may take less than asked
        if sent < view.nbytes:
            connection.sendall(view[sent:] if sent > 0 else view)
        sent -= view.nbytes


def _receive(connection: socket.socket, views: list[memoryview]) -> None:
    if len(views) == 1:
        landed = connection.recv_into(views[0], 0, socket.MSG_WAITALL)
    else:
        landed = connection.recvmsg_into(views, 0, socket.MSG_WAITALL)[0]
    if landed != sum(view.nbytes for view in views):
        raise ConnectionError(f"the other end closed after {landed} bytes")
