"""What a KV cache saves, for each eviction policy and tier, beside the same requests without a cache.

python -m analysis.kv_cache runs/kv_cache/20260101-120000-000000
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis import command
from analysis.format import interval, interval_note, number, sentence
from analysis.intervals import bootstrap_mean
from analysis.load import Run, RunError
from analysis.requests import request_frame
from analysis.results import Plot, Results, Table, titled
from analysis.style import ACCENT, SERIES
from analysis.tables import config_columns
from analysis.tokens import order_tokens
from xpyd import metrics
from xpyd.economics.verdict import Interval
from xpyd.units import NS_PER_S

NO_CACHE = "none"
BUDGET = 1.1  # a decode gap's p99 over that without a cache
LITERATURE = (5.0, 10.0)  # times less prefill with shared system prompts
HOST_WAYS, WIRE_WAYS = ("pool host", "host pool"), ("put", "fetched")


@dataclass(frozen=True)
class CacheArm:
    """One policy and tier over all repeats; differences and ratios are paired with the blocks without a cache."""

    name: str
    num_repeats: int
    hit_rate: float  # tokens found over tokens known when blocks were given
    host_share: float  # of all tokens: found in the host tier
    remote_share: float
    prefill_s: float  # a block's, mean
    saved_s: Interval
    saving: float  # times less prefill time than without
    token_saving: float  # the same in tokens computed
    ttft_s: float
    ttft_saved_s: Interval
    gap_p99_s: float
    gap_ratio: float  # over that without a cache, median over repeats
    host_bytes: float  # of a block, mean
    wire_bytes: float
    num_other_tokens: int  # requests whose tokens are not those without a cache

    @property
    def within(self) -> bool:
        return self.gap_ratio <= BUDGET


def analyse(run: Run) -> Results:
    """Raises RunError where no arm can be held against blocks without a cache."""
    arms = cache_arms(run)
    cached = [arm for arm in arms if arm.name != NO_CACHE]
    if not cached or len(cached) == len(arms):
        raise RunError(f"{run.paths[0]}: no blocks with and without a cache of the same repeat; let the run go on")
    best = max(cached, key=lambda arm: arm.saving)
    return Results(
        name=run.name,
        experiment=run.experiment,
        answer=f"At best {best.saving:.3g} times less prefill time, with {best.name}.",
        because=sentence(explain(best)),
        tables=[saving_table(run, arms), latency_table(run, arms), traffic_table(run, cached)],
        frame=tidy(run, arms),
        plots=[
            Plot(
                "Prefill seconds saved",
                "Per block, against the same requests without a cache; 95 % intervals. The line: all that it takes.",
                lambda figure: draw(figure, arms),
            )
        ],
    )


def explain(best: CacheArm) -> str:
    """Whether the literature's saving is reached, and what is in the way."""
    low, high = LITERATURE
    reached = "reaches" if best.saving >= low else "does not reach"
    text = f"{best.name} {reached} the {low:.0f} to {high:.0f} times that the literature reports for shared prompts"
    if best.saving >= low:
        return text
    cause = (
        f"it computes {best.token_saving:.3g} times fewer tokens (hit rate {best.hit_rate:.0%}): the rest is each "
        "request's own, or the first of its kind"
    )
    if best.saving < 0.9 * best.token_saving:
        cause += "; and what is left costs more per token, in small steps behind a long context"
    return f"{text}: {cause}"


def cache_arms(run: Run) -> list[CacheArm]:
    """Every arm that has repeats in common with ``none``, which comes first."""
    blocks = block_frame(run)
    if NO_CACHE not in set(blocks["arm"]):
        return []
    base = blocks[blocks["arm"] == NO_CACHE].set_index("pair")
    found = []
    for name, own in blocks.groupby("arm", sort=False):
        mine = own.set_index("pair")
        pairs = mine.index.intersection(base.index)
        if len(pairs):
            found.append(_arm(str(name), mine.loc[pairs], base.loc[pairs]))
    return sorted(found, key=lambda arm: (arm.name != NO_CACHE, arm.name))


def _arm(name: str, mine: pd.DataFrame, base: pd.DataFrame) -> CacheArm:
    known = max(1, int(mine["num_tokens"].sum()))
    return CacheArm(
        name=name,
        num_repeats=len(mine),
        hit_rate=mine["num_cached"].sum() / known,
        host_share=mine["num_host"].sum() / known,
        remote_share=mine["num_remote"].sum() / known,
        prefill_s=float(mine["prefill_s"].mean()),
        saved_s=bootstrap_mean(base["prefill_s"] - mine["prefill_s"]),
        saving=float(base["prefill_s"].sum() / mine["prefill_s"].sum()),
        token_saving=float(base["num_computed"].sum() / mine["num_computed"].sum()),
        ttft_s=float(mine["ttft_s"].mean()),
        ttft_saved_s=bootstrap_mean(base["ttft_s"] - mine["ttft_s"]),
        gap_p99_s=float(mine["gap_p99_s"].median()),
        gap_ratio=float((mine["gap_p99_s"] / base["gap_p99_s"]).median()),
        host_bytes=float(mine["host_bytes"].mean()),
        wire_bytes=float(mine["wire_bytes"].mean()),
        num_other_tokens=int(sum(_differing(mine["tokens"], base["tokens"]))),
    )


def block_frame(run: Run) -> pd.DataFrame:
    """One row per finished block: what was found, computed and moved, and what its requests saw."""
    blocks = run.tables["blocks"][["block", "pair", "arm"]]
    caches = (
        run.tables["caches"]
        .groupby("block")[["num_tokens", "num_cached_tokens", "num_host_tokens", "num_remote_tokens"]]
        .sum()
    )
    caches.columns = pd.Index(["num_tokens", "num_cached", "num_host", "num_remote"])
    moved = run.tables["tiers"].pivot_table(index="block", columns="way", values="num_bytes", aggfunc="sum")
    steps = run.tables["steps"].assign(prefill_s=prefill_seconds(run.tables["steps"]))
    frame = blocks.set_index("block").join(caches).fillna(dict.fromkeys(caches, 0))
    frame["num_computed"] = steps.groupby("block")["num_prefill_tokens"].sum()
    frame["prefill_s"] = steps.groupby("block")["prefill_s"].sum()
    frame["host_bytes"] = moved.reindex(columns=list(HOST_WAYS)).sum(axis=1)
    frame["wire_bytes"] = moved.reindex(columns=list(WIRE_WAYS)).sum(axis=1)
    frame = frame.join(_seen(run))
    return frame.fillna({"host_bytes": 0, "wire_bytes": 0}).reset_index()


def prefill_seconds(steps: pd.DataFrame) -> pd.Series:
    """Seconds that prompts took of every step: all of it, less the median step of as many decodes alone."""
    seconds = (steps["end_ns"] - steps["begin_ns"]) / NS_PER_S
    prompts = steps["num_prefill_tokens"] > 0
    alone = seconds[~prompts].groupby(steps["num_decode_seqs"]).median()
    decodes = steps["num_decode_seqs"].map(alone).fillna(0.0)
    return (seconds - decodes).clip(lower=0.0).where(prompts, 0.0)


def _seen(run: Run) -> pd.DataFrame:
    """By block: median TTFT, p99 of decode gaps, and the tokens of every request as text."""
    tokens = order_tokens(run)
    frame = request_frame(run, tokens)
    rows = []
    for block, own in frame.groupby("block"):
        gaps = metrics.waits_s(tokens.gaps.of(own.index.to_numpy()))
        p99 = float(np.quantile(gaps, 0.99)) if len(gaps) else float("nan")
        rows.append({"block": block, "ttft_s": float(own["ttft_s"].median()), "gap_p99_s": p99})
    table = run.tables["tokens"].sort_values(["block", "request_id", "index"])
    said = table.groupby(["block", "request_id"])["token_id"].agg(tuple)
    texts = {block: dict(own.droplevel("block")) for block, own in said.groupby(level="block")}
    seen = pd.DataFrame(rows).set_index("block")
    seen["tokens"] = pd.Series({block: texts.get(block, {}) for block in seen.index}, dtype=object)
    return seen


def _differing(mine: pd.Series, base: pd.Series) -> list[int]:
    """For every pair the number of requests whose tokens differ."""
    pairs = zip(mine, base.loc[mine.index], strict=True)
    return [sum(theirs.get(request) != said for request, said in own.items()) for own, theirs in pairs]


def saving_table(run: Run, arms: Sequence[CacheArm]) -> Table:
    rows = [
        (
            _shown(arm),
            number(arm.hit_rate, "share"),
            number(arm.prefill_s, "s"),
            *(
                ("", "", "")
                if arm.name == NO_CACHE
                else (interval(arm.saved_s, "s"), f"{arm.saving:.3g}x", f"{arm.token_saving:.3g}x")
            ),
        )
        for arm in arms
    ]
    notes = [
        "Prefill: seconds a block's prompts take of all workers' steps, less what decodes in them take alone. "
        "Hit rate: tokens found, of those known when a sequence is given its blocks.",
        _token_note(arms),
        interval_note(min(arm.num_repeats for arm in arms), "repeats"),
    ]
    columns = ("cache", "hit rate", "prefill", "saved", "less time", "less tokens")
    return Table(titled("Prefill saved by tier and eviction policy, measured", run.labels), columns, rows, notes)


def latency_table(run: Run, arms: Sequence[CacheArm]) -> Table:
    rows = [
        (
            _shown(arm),
            number(arm.ttft_s, "s"),
            interval(arm.ttft_saved_s, "s") if arm.name != NO_CACHE else "",
            number(arm.gap_p99_s, "s"),
            f"{arm.gap_ratio:.2f}x {'ok' if arm.within else 'ABOVE'}" if arm.name != NO_CACHE else "",
        )
        for arm in arms
    ]
    columns = ("cache", "TTFT p50", "earlier", "gap p99", "of none")
    notes = [f"Of none: p99 of the decode gap over that without a cache; ok is within {BUDGET:g}x."]
    return Table(titled("What requests see of it, measured", run.labels), columns, rows, notes)


def _token_note(arms: Sequence[CacheArm]) -> str:
    differing = sum(arm.num_other_tokens for arm in arms)
    if not differing:
        return "Every request has the tokens that it has without a cache."
    return f"{differing} requests have other tokens than without a cache: KV of other chunks rounds otherwise."


def _shown(arm: CacheArm) -> str:
    return arm.name.replace("_", " ")


def traffic_table(run: Run, arms: Sequence[CacheArm]) -> Table:
    rows = [
        (
            _shown(arm),
            number(arm.hit_rate - arm.host_share - arm.remote_share, "share"),
            number(arm.host_share, "share"),
            number(arm.remote_share, "share"),
            number(arm.host_bytes, "bytes"),
            number(arm.wire_bytes, "bytes"),
        )
        for arm in arms
    ]
    columns = ("cache", "in the pool", "in host", "in remote", "host bytes", "wire bytes")
    notes = [
        "Shares are of all tokens; a block fetched from a tier and found again later counts as in the pool.",
        "Bytes of a block of requests, all workers. On CPU ranks the host tier is the same memory as the pool, so that "
        "its copies cost what a memcpy does.",
    ]
    return Table(titled("Where hits came from, and what moved for them", run.labels), columns, rows, notes)


def draw(figure: Figure, arms: Sequence[CacheArm]) -> None:
    axes = figure.add_subplot()
    cached = [arm for arm in arms if arm.name != NO_CACHE]
    tiers = list(dict.fromkeys(arm.name.partition(" ")[0] for arm in cached))
    labels = [arm.name.replace(" ", "\n", 1).replace("expected_completion", "expected\ncompletion") for arm in cached]
    colours = [SERIES[tiers.index(arm.name.partition(" ")[0])] for arm in cached]
    axes.bar(range(len(cached)), [arm.saved_s.mid for arm in cached], color=colours, width=0.6)
    known = [(i, arm.saved_s) for i, arm in enumerate(cached) if arm.saved_s.known]
    for place, found in known:
        axes.plot([place, place], [found.low, found.high], color="0.2", lw=1)
    axes.axhline(next(arm.prefill_s for arm in arms if arm.name == NO_CACHE), color=ACCENT, lw=0.8, linestyle=":")
    axes.set_xticks(range(len(cached)), labels, fontsize=7)
    axes.set_ylabel("prefill saved, s")


def tidy(run: Run, arms: Sequence[CacheArm]) -> pd.DataFrame:
    rows = [
        {
            "cache": arm.name,
            "num_repeats": arm.num_repeats,
            "hit_rate": arm.hit_rate,
            "host_share": arm.host_share,
            "remote_share": arm.remote_share,
            "prefill_s": arm.prefill_s,
            "saved_s": arm.saved_s.mid,
            "saved_s_low": arm.saved_s.low,
            "saved_s_high": arm.saved_s.high,
            "saving": arm.saving,
            "token_saving": arm.token_saving,
            "ttft_s_p50": arm.ttft_s,
            "ttft_saved_s": arm.ttft_saved_s.mid,
            "ttft_saved_s_low": arm.ttft_saved_s.low,
            "ttft_saved_s_high": arm.ttft_saved_s.high,
            "gap_s_p99": arm.gap_p99_s,
            "gap_ratio": arm.gap_ratio,
            "host_bytes": arm.host_bytes,
            "wire_bytes": arm.wire_bytes,
            "num_other_tokens": arm.num_other_tokens,
        }
        for arm in arms
    ]
    return pd.DataFrame(rows).assign(**config_columns(run))


def main(argv: Sequence[str] | None = None) -> int:
    def run_analysis(run: Run, options: argparse.Namespace) -> Results:
        return analyse(run)

    return command.main(command.parser("kv_cache", __doc__ or ""), ["kv_cache"], run_analysis, argv=argv)


if __name__ == "__main__":
    sys.exit(main())
