"""Connects every prefill rank with every decode rank, warm, and says which wire each pair really uses."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from xpyd.placement import CLIENT_RANK, Placement, Role
from xpyd.transport.base import UNKNOWN, Transport
from xpyd.transport.counters import crossed_interfaces, interface_bytes
from xpyd.transport.fabric import FabricConfig, locked_memory_limit
from xpyd.transport.registry import TransportConfig

OPPOSITE = {Role.PREFILL: Role.DECODE, Role.DECODE: Role.PREFILL}


class Links:
    """The transport of one rank and its routes, ``source->destination``. Collective to create.

    Raises TransportError where a device is missing, InfiniBand may lock too little memory, a peer cannot be reached, or
    strict mode finds a fallback.
    """

    def __init__(
        self,
        config: TransportConfig,
        fabric: FabricConfig,
        comm: Any,
        placement: Placement,
        buffer: NDArray[np.uint8] | None,
        unit_bytes: int = 0,
        everyone: bool = False,
    ) -> None:
        """``buffer``: the memory of this rank's spans, most of them multiples of ``unit_bytes``, a KV block.

        ``everyone``: workers of one role are connected too, for a pool that they share.
        """
        if buffer is not None:
            fabric.check_locked_memory(buffer.nbytes, locked_memory_limit())
        self.transport: Transport = config.build(fabric, comm)
        if buffer is not None:
            self.transport.register(buffer, unit_bytes)
        addresses = comm.allgather(self.transport.address())
        nodes = placement.nodes
        role = placement.roles[comm.rank]
        peers = placement.ranks(OPPOSITE[role]) if role in OPPOSITE else ()
        if everyone and role is not Role.CLIENT:
            peers = tuple(rank for rank in range(len(nodes)) if rank not in (CLIENT_RANK, comm.rank))
        self.transport.connect({peer: addresses[peer] for peer in peers})
        mine = {(comm.rank, peer): self.transport.route(peer) for peer in peers}
        for route in mine.values():
            fabric.check_route(route)
        routes = {pair: route for each in comm.allgather(mine) for pair, route in each.items()}
        self.routes: dict[str, str] = {f"{source}->{peer}": route for (source, peer), route in routes.items()}
        unknown = any(route == UNKNOWN and nodes[source] != nodes[peer] for (source, peer), route in routes.items())
        lanes = [lane for route in routes.values() for lane in route.split("+")]
        self.interfaces = crossed_interfaces(lanes, unknown, interface_bytes())  # of this node

    def bytes_so_far(self) -> tuple[int, int]:
        """Bytes landed through this rank's transport, and received by its node's interfaces that KV crosses.

        A one-sided write is counted where it was posted: the rank it lands on does not see it.
        """
        crossed = sum(count for name, count in interface_bytes().items() if name in self.interfaces)
        return self.transport.received_bytes + self.transport.written_bytes, crossed

    def close(self) -> None:
        self.transport.close()
