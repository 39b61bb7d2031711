"""A running cluster: boot and kill nodes, start their daemons, shape links, run commands, read counters."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from launch.virtual_cluster import namespaces
from launch.virtual_cluster.inside import READY
from launch.virtual_cluster.links import Links, receive_commands, send_commands
from launch.virtual_cluster.spec import LOGIN, MTU_BYTES, SUBNET, ClusterError, ClusterSpec

BOOT_TIMEOUT_S = 30.0
POLL_S = 0.05
LOG_TAIL_LINES = 15
MUNGED = (
    "munged --force --num-threads 2 --key-file {folder}/munge.key --log-file {folder}/log/munged.{host}.log"
    " --socket /run/munge/munge.socket.2 --pid-file /run/munge/munged.pid --seed-file /run/munge/munged.seed"
)
# Slurm's PMIx would offer munge first, and MPI libraries built without it say so on every rank.
SLURMD = "PMIX_MCA_psec=native slurmd -b"
# A qdisc of another kind cannot be changed in place.
REPLACE_QDISC = "tc qdisc delete dev {device} root 2>/dev/null; exec tc -batch -"


@dataclass(frozen=True)
class NodeStatus:
    """One row of ``status``. The byte counters are those of the node's ``eth0``, both -1 where the node is down."""

    node: str
    address: str
    up: bool
    slurm: str
    rate: str
    pair_rates: dict[str, str]
    received_bytes: int
    sent_bytes: int


class Cluster:
    """The cluster of ``spec`` whose init has the PID ``init`` on the host."""

    def __init__(self, spec: ClusterSpec, init: int) -> None:
        self.spec = spec
        self.init = init

    def bring_up(self) -> None:
        """From a bare init to idle nodes. Raises ClusterError, with the tail of the log that says why."""
        self._inside(["ip", "link", "add", "br0", "mtu", str(MTU_BYTES), "up", "type", "bridge"])
        nodes = dict.fromkeys(self.spec.nodes, self.spec.rate)
        Links({LOGIN: "none", **nodes}).save(self.spec.folder)
        self.boot(self.spec.hosts)

    def boot(self, hosts: Sequence[str]) -> None:
        """Start nodes that are down: namespaces, link, munged, then the Slurm daemon; returns when Slurm has them."""
        for host in hosts:
            if self.keeper(host):
                raise ClusterError(f"node {host} is up already")
        starts = {host: self._outer(namespaces.unshare_node(host, self.spec.folder)) for host in hosts}
        self._for_all(starts, expected=READY)
        self._connect(hosts)
        compute = [host for host in hosts if host != LOGIN]
        for stage in ([host for host in hosts if host == LOGIN], compute):
            self._for_all({host: self.command(host, ["sh", "-c", self._daemons(host)]) for host in stage})
        self._wait_registered(compute)

    def kill(self, host: str) -> None:
        """Power failure: the link goes first, so that no peer hears a goodbye, then every process at once."""
        keeper = self._keeper_of(host)
        self._inside(["ip", "link", "delete", host])
        self._inside(namespaces.kill_node(keeper))
        self._keeper_file(host).unlink()

    def set_link(self, host: str, up: bool) -> None:
        """Pull the cable of a node, or put it back; what runs there goes on."""
        self.spec.check(host)
        self._inside(["ip", "link", "set", host, "up" if up else "down"])

    def shape(self, links: Links, hosts: Iterable[str]) -> None:
        """Make the links of ``hosts`` as ``links`` says, and keep that for nodes that boot later."""
        for host in hosts:
            if self.keeper(host):
                sender = self.command(host, ["sh", "-c", REPLACE_QDISC.format(device="eth0")])
                namespaces.run(sender, stdin="\n".join(send_commands(links, host, self.spec)))
                switch = self._outer(["sh", "-c", REPLACE_QDISC.format(device=host)])
                namespaces.run(switch, stdin="\n".join(receive_commands(links, host)))
        links.save(self.spec.folder)

    def command(self, host: str, command: Sequence[str], directory: str = "/") -> list[str]:
        """The command line that runs ``command`` on a node. Raises ClusterError where the node is down."""
        return self._outer(namespaces.enter_node(self._keeper_of(host), command, directory))

    def status(self) -> list[NodeStatus]:
        """One row per node, the login node first."""
        links, counters, slurm = Links.load(self.spec.folder), self._counters(), self._slurm_states()
        return [
            NodeStatus(
                node=host,
                address=self.spec.address(host),
                up=host in counters,
                slurm=slurm.get(host, "-"),
                rate=links.nodes[host],
                pair_rates=links.peers(host),
                received_bytes=counters.get(host, (-1, -1))[0],
                sent_bytes=counters.get(host, (-1, -1))[1],
            )
            for host in self.spec.hosts
        ]

    def keeper(self, host: str) -> int | None:
        """The process that holds a node's namespaces, as the cluster numbers processes; None where it is down."""
        try:
            return int(self._keeper_file(self.spec.check(host)).read_text())
        except FileNotFoundError:
            return None

    def _keeper_file(self, host: str) -> Path:
        return self.spec.folder / "nodes" / host

    def _keeper_of(self, host: str) -> int:
        keeper = self.keeper(host)
        if keeper is None:
            raise ClusterError(f"node {host} is down; start it: python -m launch.virtual_cluster boot {host}")
        return keeper

    def _connect(self, hosts: Sequence[str]) -> None:
        """A veth pair from each node's eth0 to the switch, at the link's rate."""
        wires = []
        for host in hosts:
            far_end = f"peer name eth0 mtu {MTU_BYTES} netns {self.keeper(host)}"
            wires += [f"link add {host} mtu {MTU_BYTES} type veth {far_end}", f"link set {host} master br0 up"]
        namespaces.run(self._outer(["ip", "-batch", "-"]), stdin="\n".join(wires))
        for host in hosts:
            lines = f"address add {self.spec.address(host)}/24 brd {SUBNET}.255 dev eth0\nlink set eth0 up"
            namespaces.run(self.command(host, ["ip", "-batch", "-"]), stdin=lines)
        self.shape(Links.load(self.spec.folder), hosts)

    def _daemons(self, host: str) -> str:
        munged = MUNGED.format(folder=self.spec.folder, host=host)
        return f"{munged} && {'slurmctld' if host == LOGIN else SLURMD}"

    def _for_all(self, commands: dict[str, list[str]], expected: str = "") -> None:
        """Run a command per node, all at once. Raises ClusterError with what the first that failed has to say.

        A command fails by its exit code, or by not saying ``expected``.
        """
        children = {host: _start(command) for host, command in commands.items()}
        failures = []
        for host, child in children.items():
            try:
                output, _ = child.communicate(timeout=BOOT_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                child.kill()
                output, _ = child.communicate()
            if child.returncode or expected not in output:
                failures.append(f"node {host} did not come up: {output.strip()}\n{self._log_tails(host)}")
        if failures:
            raise ClusterError(failures[0])

    def _wait_registered(self, hosts: Sequence[str]) -> None:
        deadline = time.monotonic() + BOOT_TIMEOUT_S
        while time.monotonic() < deadline:
            states = self._slurm_states()
            missing = [host for host in hosts if states.get(host) not in ("idle", "mixed", "allocated")]
            if not missing:
                return
            time.sleep(POLL_S)
        state = f"Slurm says {states.get(missing[0], 'nothing')!r} of it"
        raise ClusterError(f"node {missing[0]} did not register: {state}\n{self._log_tails(LOGIN, missing[0])}")

    def _slurm_states(self) -> dict[str, str]:
        if self.keeper(LOGIN) is None:
            return {}
        command = self.command(LOGIN, ["timeout", "10", "sinfo", "-h", "-N", "-p", "all", "-o", "%N %T"])
        output = subprocess.run(command, capture_output=True, text=True).stdout
        return dict(line.split() for line in output.splitlines())

    def _counters(self) -> dict[str, tuple[int, int]]:
        """(received, sent) bytes of ``eth0`` of each node that is up."""
        keepers = {keeper: host for host in self.spec.hosts if (keeper := self.keeper(host))}
        files = [f"/proc/{keeper}/net/dev" for keeper in keepers]
        counters = {}
        for line in self._inside(["grep", "-H", "eth0:", *files]).splitlines() if files else []:
            path, _, fields = line.replace("eth0:", "").partition(":")
            values = fields.split()
            counters[keepers[int(path.split("/")[2])]] = (int(values[0]), int(values[8]))
        return counters

    def _log_tails(self, *hosts: str) -> str:
        names = [f"munged.{host}" for host in hosts]
        names += ["slurmctld" if host == LOGIN else f"slurmd.{host}" for host in hosts]
        tails = []
        for log in (self.spec.log(name) for name in names):
            if log.exists():
                lines = log.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:]
                tails.append("\n".join([f"--- {log}", *lines]))
        return "\n".join(tails)

    def _outer(self, command: Sequence[str]) -> list[str]:
        return namespaces.enter_cluster(self.init, command)

    def _inside(self, command: Sequence[str]) -> str:
        return namespaces.run(self._outer(command))


def _start(command: Sequence[str]) -> subprocess.Popen[str]:
    """A child whose output, both streams, is ours to read."""
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, text=True, stdin=quiet, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
