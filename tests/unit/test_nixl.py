"""The nixl transport: what its UCX refuses is named, its log is read right, spans of whole units and others move."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from xpyd.kv.layout import Span
from xpyd.transport import nixl_ucx
from xpyd.transport.base import Bytes, Ticket, TransportError
from xpyd.transport.nixl import NixlTransport, units_of
from xpyd.transport.nixl_ucx import complaints_in, route_in

UNIT = 64
LOG = """\
[1795245866.27] [vm:1:0]  ucp_context.c:2753 UCX  INFO  Version 1.23.0 (loaded from /x/libucp.so)
[1795245866.27] [vm:1:0]  ucp_worker.c:1997  UCX  INFO    rank2 self cfg#0 rma_am(tcp/lo)  am(tcp/lo cma/memory)
[1795245866.28] [vm:1:0]  ucp_context.c:1508 UCX  WARN  network device 'eth7' is not available, please use: 'lo'
[1795245866.29] [vm:1:0]  ucp_worker.c:1997  UCX  INFO    rank2 inter-node cfg#1 rma_am(tcp/eth0)  am(tcp/eth0 tcp/eth1)
"""
SECOND = "[1795245866.30] [vm:1:0]  ucp_worker.c:1997  UCX  INFO    rank2 intra-node cfg#2 am(sysv/memory)\n"


@pytest.mark.parametrize(
    ("spans", "units"),
    [
        ([Span(0, 64)], [0]),
        ([Span(192, 128), Span(64, 64)], [3, 4, 1]),
        ([Span(128, 64), Span(0, 192)], [2, 0, 1, 2]),
        ([], []),
        ([Span(32, 64)], None),
        ([Span(0, 64), Span(64, 32)], None),
    ],
)
def test_spans_become_units_only_where_they_are_made_of_them(spans: list[Span], units: list[int] | None) -> None:
    found = units_of(spans, UNIT)
    assert (found if found is None else found.tolist()) == units


def test_the_route_is_the_wires_to_others() -> None:
    assert route_in(LOG, "rank2") == "tcp/eth0+tcp/eth1"


@pytest.mark.parametrize(("log", "agent"), [("", "rank2"), (LOG, "rank1"), (LOG + SECOND, "rank2")])
def test_a_route_that_cannot_be_told_is_unknown(log: str, agent: str) -> None:
    assert route_in(log, agent) == "unknown"


def test_complaints_are_kept_without_the_rest() -> None:
    assert complaints_in(LOG + LOG) == ["network device 'eth7' is not available, please use: 'lo'"]


def test_a_log_that_the_user_directs_elsewhere_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCX_LOG_LEVEL", "debug")
    monkeypatch.setattr(nixl_ucx, "_log_file", nixl_ucx._log_file.__wrapped__)
    with nixl_ucx.loading():
        assert os.environ["UCX_LOG_LEVEL"] == "debug"
        assert "UCX_LOG_FILE" not in os.environ
    assert route_in(nixl_ucx.UcxLog().text(), "rank0") == "unknown"


def test_no_nixl_gives_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nixl_cu12._api", "nixl._api"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(TransportError, match=r"no nixl here .*pip install 'xpyd\[nixl\]'.*transport=ucx"):
        NixlTransport(0, {})


@pytest.fixture(scope="module")
def nixl() -> None:
    pytest.importorskip("nixl_cu12", reason="no nixl: pip install 'xpyd[nixl]'")


@pytest.mark.usefixtures("nixl")
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"TLS": "tcp", "NOSUCH": "3"}, r"refuses NOSUCH=3 \(fabric"),
        ({"TLS": "tcp", "RNDV_THRESH": "soon"}, r"refuses RNDV_THRESH=soon \("),
        ({"TLS": "nosuch"}, "transport 'nosuch' is not available"),
        ({"TLS": "tcp", "NET_DEVICES": "nosuch7"}, "'nosuch7' is not available"),
        ({"TLS": "tcp,nosuch"}, "'nosuch' is not available"),
        ({"TLS": "sm"}, "no peer failure handler"),
    ],
)
def test_what_its_ucx_refuses_or_would_replace_is_named(settings: dict[str, str], message: str) -> None:
    before = dict(os.environ)
    with pytest.raises(TransportError, match=message):
        NixlTransport(0, settings)
    assert dict(os.environ) == before


@pytest.fixture(scope="module")
def pair(nixl: None) -> Iterator[tuple[NixlTransport, NixlTransport, Bytes, Bytes]]:
    """Ranks 1 and 2 in this process, connected; 1 holds random bytes."""
    transports = [NixlTransport(rank, {"TLS": "tcp,self", "NET_DEVICES": "lo"}) for rank in (1, 2)]
    buffers = [np.random.default_rng(0).integers(0, 256, 16 * UNIT, dtype=np.uint8), np.zeros(16 * UNIT, np.uint8)]
    for transport, buffer in zip(transports, buffers, strict=True):
        transport.register(buffer, UNIT)
    first, second = transports
    addresses = first.address(), second.address()
    other = threading.Thread(target=first.connect, args=({2: addresses[1]},))
    other.start()
    second.connect({1: addresses[0]})
    other.join()
    yield first, second, *buffers
    for transport in transports:
        transport.close()
        transport.close()


def finish(ticket: Ticket, *transports: NixlTransport) -> None:
    while not ticket.done():
        for transport in transports:
            transport.progress()


WHOLE_UNITS = [Span(3 * UNIT, 2 * UNIT), Span(0, UNIT)], [Span(UNIT, 2 * UNIT), Span(9 * UNIT, UNIT)]
PARTS_OF_UNITS = [Span(3, 100), Span(200, 1)], [Span(70, 100), Span(0, 1)]


@pytest.mark.parametrize(("source", "destination"), [WHOLE_UNITS, PARTS_OF_UNITS])
@pytest.mark.parametrize("way", ["read", "write"])
def test_any_spans_land_where_they_should_and_nowhere_else(
    pair: tuple[NixlTransport, NixlTransport, Bytes, Bytes], way: str, source: list[Span], destination: list[Span]
) -> None:
    first, second, sent, landed = pair
    landed[:] = 0
    counted = second.received_bytes, first.written_bytes
    ticket = second.read(1, source, destination) if way == "read" else first.write(2, source, destination)
    finish(ticket, first, second)
    expected = np.zeros_like(landed)
    for a, b in zip(source, destination, strict=True):
        expected[b.offset : b.offset + b.nbytes] = sent[a.offset : a.offset + a.nbytes]
    assert (landed == expected).all()
    total = sum(span.nbytes for span in source)
    grown = second.received_bytes - counted[0], first.written_bytes - counted[1]
    assert grown == ((total, 0) if way == "read" else (0, total))


def test_the_pair_knows_its_wire(pair: tuple[NixlTransport, NixlTransport, Bytes, Bytes]) -> None:
    assert pair[0].route(2) == pair[1].route(1) == "tcp/lo"


def test_ends_that_planned_different_pieces_are_a_bug(pair: tuple[NixlTransport, NixlTransport, Bytes, Bytes]) -> None:
    with pytest.raises(AssertionError, match="same pieces"):
        pair[1].read(1, [Span(0, 4)], [Span(0, 8)])
