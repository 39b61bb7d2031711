"""The command line of the virtual cluster.

python -m launch.virtual_cluster up -n 4 --rate 10gbit
python -m launch.virtual_cluster run sbatch -N 3 launch/slurm.sbatch compare placement=2p1d
python -m launch.virtual_cluster exec n2 ip addr
python -m launch.virtual_cluster shape 1gbit --pair n1 n2
python -m launch.virtual_cluster down
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from launch.virtual_cluster import namespaces
from launch.virtual_cluster.cluster import NodeStatus
from launch.virtual_cluster.life import Front, down, open_cluster
from launch.virtual_cluster.links import Links, parse_rate
from launch.virtual_cluster.spec import LOGIN, ClusterError, ClusterSpec, default_dir

USER_ERROR = 2


def main(arguments: Sequence[str]) -> int:
    """Exit code of one command; errors are one line without a traceback."""
    options = parser().parse_args(arguments)
    options.dir = options.dir.absolute()
    namespaces.extend_path()
    signal.signal(signal.SIGTERM, _unwind)
    try:
        act = {"up": up, "run": execute, "exec": execute, "kill": kill, "boot": boot, "shape": shape, "status": status}
        if options.verb == "down":
            down(options.dir)
            return 0
        return act[options.verb](options)
    except ClusterError as error:
        print(f"error: {error}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        return 128 + signal.SIGINT


def parser() -> argparse.ArgumentParser:
    main_parser = argparse.ArgumentParser(prog="python -m launch.virtual_cluster", description=__doc__.splitlines()[0])
    main_parser.add_argument(
        "--dir", type=Path, default=default_dir(), help="the cluster's folder (default: %(default)s)"
    )
    verbs = main_parser.add_subparsers(dest="verb", required=True, metavar="COMMAND")
    add = verbs.add_parser
    starter = add("up", help="start a cluster; returns when all nodes are idle")
    starter.add_argument("-n", "--num-nodes", type=int, default=4)
    starter.add_argument("--rate", default="10gbit", help="of every node's link, each direction; none: unshaped")
    starter.add_argument("--cpus", type=int, default=8, help="made-up CPUs per node, for Slurm")
    starter.add_argument("--gpus", type=int, default=2, help="made-up GPUs per node, for Slurm")
    starter.add_argument("--foreground", action="store_true", help="stay, and end the cluster on Ctrl-C or when killed")
    runner = add("run", help="run a command on the login node, in this directory")
    runner.add_argument("command", nargs=argparse.REMAINDER)
    runner.set_defaults(node=LOGIN)
    on_node = add("exec", help="run a command on a node, in this directory")
    on_node.add_argument("node")
    on_node.add_argument("command", nargs=argparse.REMAINDER)
    for verb, text in (("kill", "power failure of a node"), ("boot", "start a killed node again")):
        add(verb, help=text).add_argument("node")
    shaper = add("shape", help="set link rates: of all nodes, one node or a pair")
    shaper.add_argument("rate", help="such as 1gbit; none: unshaped")
    which = shaper.add_mutually_exclusive_group()
    which.add_argument("--node")
    which.add_argument("--pair", nargs=2, metavar=("A", "B"))
    add("status", help="nodes, rates and byte counters").add_argument("--json", action="store_true")
    add("down", help="end the cluster and remove its folder")
    for command in verbs.choices.values():  # --dir is understood after the command, too
        command.add_argument("--dir", type=Path, default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return main_parser


def up(options: argparse.Namespace) -> int:
    """Start; then leave, or stay in the foreground until a signal or ``down`` ends the cluster."""
    begin = time.monotonic()
    spec = ClusterSpec(options.dir, options.num_nodes, options.rate, options.cpus, options.gpus)
    parse_rate(spec.rate)
    if reason := namespaces.refusal():
        raise ClusterError(reason)
    front = Front(spec)
    try:
        front.cluster().bring_up()
        took_s = time.monotonic() - begin
        print(f"{spec.num_nodes} nodes at {spec.rate} in {took_s:.1f} s; folder {spec.folder}", flush=True)
        if not options.foreground:
            front.detach()
            return 0
        front.wait()
    except BaseException:
        front.end()
        raise
    return 0


def execute(options: argparse.Namespace) -> int:
    """Become the command: its exit code, terminal and working directory are ours. Our death ends it."""
    if not options.command:
        raise ClusterError(f"{options.verb}: no command given")
    cluster = open_cluster(options.dir)
    os.environ["XPYD_CLUSTER_DIR"] = str(options.dir)
    command = cluster.command(options.node, options.command, directory=os.getcwd())
    os.execvp(command[0], command)


def kill(options: argparse.Namespace) -> int:
    open_cluster(options.dir).kill(options.node)
    return 0


def boot(options: argparse.Namespace) -> int:
    open_cluster(options.dir).boot([options.node])
    return 0


def shape(options: argparse.Namespace) -> int:
    """Change rates while traffic flows."""
    cluster = open_cluster(options.dir)
    links = Links.load(options.dir)
    nodes = options.pair or ([options.node] if options.node else cluster.spec.nodes)
    for node in nodes:
        cluster.spec.check(node)
    if options.pair:
        first, second = options.pair
        links.set_pair(first, second, options.rate)
    else:
        for node in nodes:
            links.set_node(node, options.rate)
    cluster.shape(links, nodes)
    return 0


def status(options: argparse.Namespace) -> int:
    rows = open_cluster(options.dir).status()
    if options.json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))
    else:
        print(_table(rows))
    return 0


def _table(rows: Sequence[NodeStatus]) -> str:
    line = "{:<8}{:<14}{:<6}{:<12}{:<28}{:>16}{:>16}".format
    lines = [line("node", "address", "power", "slurm", "rate", "received_bytes", "sent_bytes")]
    for row in rows:
        rates = ", ".join([row.rate, *(f"{rate} to {peer}" for peer, rate in row.pair_rates.items())])
        power = "on" if row.up else "off"
        lines.append(line(row.node, row.address, power, row.slurm, rates, row.received_bytes, row.sent_bytes))
    return "\n".join(lines)


def _unwind(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
