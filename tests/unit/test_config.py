"""Every YAML composes and builds, and every kind of wrong value is refused with key, value and what is allowed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from xpyd.config.base import ConfigError
from xpyd.config.compare import Compare
from xpyd.config.load import SCHEMAS, dump_config, load_config
from xpyd.config.modeled import Economics

CONF = Path(__file__).parents[2] / "conf"
SERVING = ("model", "placement", "scheduler", "transport", "transfer", "codec", "fabric", "workload", "slo", "launch")
EXPERIMENT_GROUPS = {
    "compare": (*SERVING, "router", "hybrid", "rival", "speculation"),
    "speculation": ("placement", "speculation"),
    "tune_colocated": ("scheduler", "workload"),
    "saturation": ("scheduler", "slo", "prices"),
    "serve": (*SERVING, "router"),
    "transfer": ("placement", "transport", "fabric", "launch"),
    "tune": ("fabric", "search", "launch"),
    "interference": ("model", "placement", "scheduler", "launch"),
    "handoff": ("model", "placement", "scheduler", "transport", "transfer", "fabric", "launch"),
    "contention": ("placement", "scheduler", "transport", "fabric", "launch"),
    "check_cluster": ("model", "placement", "scheduler", "transport", "fabric", "check", "launch"),
    "economics": ("model", "economics"),
    "expert_parallel": ("launch",),
    "codecs": ("model",),
}
NEEDS_A_PATH = {("model", "checkpoint"), ("workload", "mooncake"), ("workload", "azure"), ("workload", "burstgpt")}
SHAPES_ONLY = ("gpt_oss_20b", "gpt_oss_120b")  # models to reckon with
ALSO = {  # what the option asks for beside itself
    ("handoff", "scheduler", "prefill_first"): ["sweep.modes=[whole,layerwise]"],
    ("handoff", "scheduler", "static"): ["sweep.modes=[whole,layerwise]"],
    ("handoff", "transfer", "staged"): ["sweep.directions=[pull]"],
}
COLOCATED = {"1c", "2c", "3c", "4c"}


def composed(experiment: str, *overrides: str) -> dict[str, Any]:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(experiment, overrides=list(overrides))
    plain = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(plain, dict)
    return plain


def options() -> list[tuple[str, str, str]]:
    found = []
    for experiment, groups in EXPERIMENT_GROUPS.items():
        for group in groups:
            for path in sorted((CONF / group).glob("*.yaml")):
                found.append((experiment, group, path.stem))
    return found


def fits(experiment: str, group: str, option: str) -> bool:
    if (experiment, group, option) == ("speculation", "speculation", "none"):
        return False  # there is nothing to compare
    if (group, option) in NEEDS_A_PATH or (option in SHAPES_ONLY and experiment not in ("economics", "check_cluster")):
        return False
    return not (
        group == "placement"
        and experiment in ("compare", "contention", "handoff", "speculation", "transfer")
        and option in COLOCATED
    )


@pytest.mark.parametrize("experiment", [name for name in SCHEMAS if name != "regret"])  # which needs a plan
def test_every_experiment_composes_and_builds(experiment: str) -> None:
    config = load_config(composed(experiment))
    assert config.experiment == experiment
    assert load_config(dump_config(config)) == config, "what is frozen into the run folder loads as the same"


@pytest.mark.parametrize(("experiment", "group", "option"), [o for o in options() if fits(*o)])
def test_every_option_of_every_group_builds(experiment: str, group: str, option: str) -> None:
    load_config(composed(experiment, f"{group}={option}", *ALSO.get((experiment, group, option), [])))


def test_presets_build() -> None:
    for path in (CONF / "preset").glob("*.yaml"):
        assert isinstance(load_config(composed("compare", f"+preset={path.stem}")), Compare)


TP2 = ["placement.prefill_tp=2", "placement.decode_tp=2"]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+transfer.piecs_in_flight=2"], r"transfer\.piecs_in_flight=2: no such key; did you mean pieces_in_flight\?"),
        (["transfer.pieces_in_flight=0"], r"transfer\.pieces_in_flight=0: .*greater than 0"),
        (["transfer.mode=chunkwise", "scheduler=prefill_first"], r"mode=chunkwise .*choose scheduler=chunked"),
        (["transfer.direction=push", "transfer.staging=on"], r"staging=on with direction=push.*direction=pull"),
        (["transfer=staged", "transfer.max_piece_bytes=1024"], r"larger than transfer\.max_piece_bytes=1024"),
        (["transfer=staged", "transfer.staging_bytes=1024"], r"staging_bytes=1024 is less than one transfer needs"),
        (["transfer.mode=sideways"], r"transfer\.mode='sideways': .*'whole', 'layerwise' or 'chunkwise'"),
        (["num_pairs=many"], r"num_pairs='many': .*integer"),
        (["scheduler.num_kv_blocks=4"], r"num_kv_blocks=4 .*longest request .*raise scheduler\.num_kv_blocks"),
        (["placement=2c"], r"num_colocated=2: compare needs xPyD"),
        (["placement.num_decode=0"], r"num_decode=0: both must be at least 1"),
        (
            ["transport=mpi", "transport.peer_errors=true"],
            r"transport\.name=mpi declares no peer_errors.*peer_errors=null",
        ),
        (["transport=mpi", "fabric=tcp"], r"transport\.name=mpi declares no takes_fabric, which fabric\.tls=\['tcp'\]"),
        (["transport=nixl", "transfer.staging=on"], r"nixl declares no two_sided, .*staging=on needs; .*staging=off"),
        (["transport.name=loopback"], r"name='loopback' works inside one process only"),
        (["placement.decode_tp=3"], r"placement\.decode_tp='?3'?: .*1, 2, 4 or 8"),
        (
            ["placement.decode_tp=2"],
            r"block_order=tokens_first with .*decode_tp=2.* set transfer\.block_order=heads_first",
        ),
        (
            ["placement.decode_tp=8", "model=micro"],
            r"num_heads=4 of micro does not divide among 8 ranks",
        ),
        (["placement.decode_pp=8"], r"num_layers=6 of tiny are fewer than 8 pipeline stages; .*decode_pp of 6 at most"),
        (["placement.decode_pp=2", "placement.decode_tp=2"], r"decode_tp=2 with decode_pp=2: .*set one to 1"),
        (["placement.prefill_cp=2", "placement.prefill_tp=2"], r"prefill_tp=2 with prefill_cp=2: .*set one to 1"),
        (
            ["placement.decode_ep=2", "placement.decode_pp=2"],
            r"decode_pp=2 with decode_ep=2: an instance shares work in one way; set one to 1",
        ),
        (
            ["placement.decode_ep=2", "model=tiny"],
            r"model\.experts=null: tiny has no experts for 2 .*prefill_tp, .* in place of .*decode_ep.*model=tiny_moe",
        ),
        (
            ["placement.decode_ep=4", "model=tiny_moe", "model.experts.num_experts=6"],
            r"model\.experts\.num_experts=6 of tiny_moe does not divide among 4 .* choose .*decode_ep",
        ),
        (["placement.decode_ep=2", "model=tiny_moe"], r"block_order=tokens_first with .*decode_ep=2"),
        (["placement.prefill_cp=2", "transfer.staging=on"], r"staging=on .*prefill_cp=2, decode_tp=1.*staging=off"),
        (["placement.decode_micro_batches=2"], r"placement: decode_micro_batches=2 with decode_pp=1 would be ignored"),
        (["placement.decode_pp=2", "transfer.direction=push"], r"direction=push with .*prefill_tp=1, decode_pp=2"),
        (["placement.decode_pp=2", "transport=nixl"], r"nixl declares no two_sided, .*decode_pp=2 needs"),
        (["model=gpt_oss_20b"], r"model=gpt_oss_20b is a shape for experiments.economics only: attention sinks"),
        (
            ["model=tiny_mla", "model.num_kv_heads=2"],
            r"model: num_kv_heads=2 with latent attention.*set num_kv_heads=1",
        ),
        (["model=tiny_moe", "+model.experts.n_group=2"], r"model\.experts: n_group=2 with topk_method=greedy"),
        (["scheduler.eviction=priority"], r"eviction=priority, num_host_blocks=0, .* beside prefix_cache=false"),
        (["scheduler.prefix_cache=true", "placement.decode_pp=2"], r"decode_pp=2: scheduler\.prefix_cache=true knows"),
        (
            [*TP2, "scheduler.prefix_cache=true", "scheduler.num_host_blocks=8", "transfer.block_order=heads_first"],
            r"num_host_blocks=8, .* with placement 1P\(tp2\)1D\(tp2\): only instances of one rank",
        ),
        (
            ["scheduler.prefix_cache=true", "scheduler.num_remote_blocks=8"],
            r"num_remote_blocks=8 with placement 1P1D: .*there is one",
        ),
        (
            ["placement=2p1d", "transport=nixl", "scheduler.prefix_cache=true", "scheduler.num_remote_blocks=8"],
            r"nixl declares no two_sided, which scheduler\.num_remote_blocks=8 needs",
        ),
        ([*TP2, "transfer.direction=push"], r"direction=push with .*prefill_tp=2.* set transfer\.direction=pull"),
        ([*TP2, "transfer.staging=on"], r"staging=on .*prefill_tp=2.* set transfer\.staging=off"),
        ([*TP2, "transport=nixl"], r"nixl declares no two_sided, which placement\.prefill_tp=2, decode_tp=2 needs"),
        ([*TP2, "placement=2p1d", "placement.colocated_tp=4"], r"colocated_tp=4: 6 worker ranks do not divide"),
    ],
)
def test_wrong_values_are_refused(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(composed("compare", *overrides))


@pytest.mark.parametrize("override", ["placement.prefill_cp=2", "placement.decode_pp=2"])
@pytest.mark.parametrize(
    ("experiment", "why"),
    [
        ("simulate", "only tensor-parallel instances are simulated"),
        ("contention", "measures pairs of single ranks"),
        ("calibrate", "times single ranks"),
    ],
)
def test_experiments_refuse_instances_that_they_do_not_know(experiment: str, why: str, override: str) -> None:
    with pytest.raises(ConfigError, match=why):
        load_config(composed(experiment, override))


def test_expert_parallel_instances_are_not_simulated() -> None:
    with pytest.raises(ConfigError, match=r"decode_ep=2: only tensor-parallel instances are simulated"):
        load_config(composed("simulate", "placement.decode_ep=2", "model=tiny_moe"))


def test_an_ignored_setting_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"placement=.*no such key"):
        load_config({**composed("economics"), "placement": {"num_prefill": 1}})


def test_all_problems_are_listed_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(composed("compare", "transfer.pieces_in_flight=0", "num_pairs=0"))
    assert len(str(caught.value).splitlines()) == 2


def test_economics_needs_no_ranks() -> None:
    config = load_config(composed("economics"))
    assert isinstance(config, Economics)
    assert config.world_size == 0
