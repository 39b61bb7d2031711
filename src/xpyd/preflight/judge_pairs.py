"""Judges what pairs did: whether they answered, whether bytes came back right, and how fast. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from xpyd.preflight.facts import PairFacts
from xpyd.preflight.finding import Finding, Level, Topic
from xpyd.preflight.options import CheckConfig
from xpyd.preflight.outcome import WRONG_CHECKSUM
from xpyd.units import bytes_per_s_to_gbps, format_bytes, format_s


def judge_pairs(
    pairs: Sequence[PairFacts], node_of: Sequence[str], check: CheckConfig, rate_gbps: float
) -> list[Finding]:
    """Echo and bandwidth: one finding for the pairs that are well, one for each that is not."""
    found = [*_unprobed(pairs), *(_silent(pair, node_of) for pair in pairs if pair.error)]
    echoes = [f"{pair.name} {format_s(pair.echo_s)}" for pair in pairs if pair.echo_s is not None]
    if echoes:
        text = f"{format_bytes(check.echo_bytes)} there and back, checksums right: {', '.join(echoes)}"
        found.append(Finding(Topic.PAIRS, "echo", Level.OK, text))
    good = []
    for pair in pairs:
        if pair.rate_bytes_per_s is None:
            continue
        level, text, remedy = _bandwidth(bytes_per_s_to_gbps(pair.rate_bytes_per_s), rate_gbps, check)
        if level is Level.OK:
            good.append(f"{pair.name} {text}")
        else:
            found.append(Finding(Topic.PAIRS, f"bandwidth {pair.name}", level, text, remedy))
    if good:
        text = f"{', '.join(good)} of fabric.rate_gbps={rate_gbps:g}"
        found.append(Finding(Topic.PAIRS, "bandwidth", Level.OK, text))
    return found


def _unprobed(pairs: Sequence[PairFacts]) -> list[Finding]:
    names = [pair.name for pair in pairs if pair.unprobed]
    if not names:
        return []
    text = f"{', '.join(names)}: not probed, since the transport of one end or both was not opened"
    return [Finding(Topic.PAIRS, "connection", Level.ERROR, text, "see the findings on the fabric")]


def _silent(pair: PairFacts, node_of: Sequence[str]) -> Finding:
    stage = "connection" if not pair.route else "echo" if pair.echo_s is None else "bandwidth"
    return Finding(
        Topic.PAIRS,
        f"{stage} {pair.name}",
        Level.ERROR,
        f"{node_of[pair.source]} -> {node_of[pair.destination]}: {pair.error}",
        _remedy(pair.error),
    )


def _remedy(error: str) -> str:
    if WRONG_CHECKSUM in error:
        return (
            "bytes changed on the way: try another transport, device or UCX, tell the site, and trust no run until then"
        )
    return (
        "a firewall between the nodes, the wrong fabric.net_devices, or a rank that died; check.timeout_s waits longer"
    )


def _bandwidth(measured_gbps: float, rate_gbps: float, check: CheckConfig) -> tuple[Level, str, str]:
    share = measured_gbps / rate_gbps
    text = f"{measured_gbps:.3g} Gb/s, {100 * share:.3g} %"
    if share < check.min_rate_share:
        return (
            Level.WARNING,
            f"{text} of fabric.rate_gbps={rate_gbps:g}: below check.min_rate_share={check.min_rate_share:g}",
            "other traffic, the wrong device (fabric.net_devices), too few cores, or UCX settings (docs/fabric.md); or "
            "fabric.rate_gbps is not this link's",
        )
    if share > check.max_rate_share:
        return (
            Level.WARNING,
            f"{text} of fabric.rate_gbps={rate_gbps:g}: above check.max_rate_share={check.max_rate_share:g}",
            "set fabric.rate_gbps to this link's rate (predictions start from it); or both ranks are on one node",
        )
    return Level.OK, text, ""
