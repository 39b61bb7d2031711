"""Interface counters: the kernel's formats are read right, and traffic over loopback shows."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from xpyd.transport.counters import crossed_interfaces, interface_bytes, is_software

NET_DEV = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls
    lo: 1234567   11 0 0 0 0 0 0 1234567 11 0 0 0 0 0 0
eth0:98765432109 22 0 0 0 0 0 0 5 1 0 0 0 0 0 0
"""


def test_the_kernel_table_is_read_also_where_a_count_fills_its_column(tmp_path: Path) -> None:
    table = tmp_path / "dev"
    table.write_text(NET_DEV)
    assert interface_bytes(table, tmp_path / "none") == {"lo": 1234567, "eth0": 98765432109}


def test_infiniband_ports_count_words_of_four_bytes(tmp_path: Path) -> None:
    counter = tmp_path / "mlx5_0" / "ports" / "2" / "counters" / "port_rcv_data"
    counter.parent.mkdir(parents=True)
    counter.write_text("1000\n")
    assert interface_bytes(tmp_path / "none", tmp_path) == {"mlx5_0:2": 4000}


def test_a_port_of_soft_roce_counts_what_its_interface_does(tmp_path: Path) -> None:
    (tmp_path / "dev").write_text(NET_DEV)
    for device, behind in (("rxe0", "devices/virtual/infiniband"), ("mlx5_0", "devices/pci0000:00/infiniband")):
        ports = tmp_path / behind / device / "ports" / "1" / "gid_attrs" / "ndevs"
        ports.mkdir(parents=True)
        (ports / "0").write_text("eth0\n")
        (tmp_path / "class").mkdir(exist_ok=True)
        (tmp_path / "class" / device).symlink_to(tmp_path / behind / device)
    counts = interface_bytes(tmp_path / "dev", tmp_path / "class")
    assert counts["rxe0:1"] == counts["eth0"] == 98765432109
    assert "mlx5_0:1" not in counts, "hardware does not pass through the interface"
    assert [is_software(device, tmp_path / "class") for device in ("rxe0", "mlx5_0")] == [True, False]


@pytest.mark.parametrize(
    ("lanes", "unknown_between_nodes", "crossed"),
    [
        (["tcp/eth0", "cma/memory"], False, {"eth0"}),
        (["tcp/lo"], False, {"lo"}),
        (["rc_mlx5/mlx5_0:1"], False, {"mlx5_0:1"}),
        (["posix/memory"], False, set()),
        (["unknown"], False, set()),
        (["unknown"], True, {"eth0", "mlx5_0:1"}),
    ],
)
def test_kv_crosses_the_interfaces_that_its_lanes_name(
    lanes: list[str], unknown_between_nodes: bool, crossed: set[str]
) -> None:
    assert crossed_interfaces(lanes, unknown_between_nodes, ["lo", "eth0", "mlx5_0:1"]) == crossed


def test_bytes_over_loopback_are_counted() -> None:
    nbytes = 1 << 20
    with socket.create_server(("127.0.0.1", 0)) as server:
        before = interface_bytes()["lo"]
        with socket.create_connection(server.getsockname()) as sender:
            receiver, _ = server.accept()
            with receiver:
                for _ in range(16):
                    sender.sendall(bytes(nbytes // 16))
                    received = 0
                    while received < nbytes // 16:
                        received += len(receiver.recv(nbytes))
        assert interface_bytes()["lo"] - before >= nbytes
