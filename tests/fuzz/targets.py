"""What is fed: each target makes one input from a generator, uses it, and says whether it was taken or refused.

A refusal is an error that this project raises itself, of the kinds that its command lines print as one line. Anything
else (another kind of error, or one of these kinds from the depths of a library) is a finding.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import traceback
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, ClassVar

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from analysis.command import told
from analysis.load import RunError, load_run
from analysis.report import ANALYSES
from tests.analysis.synthetic import Way, block_rows, write_run
from tests.fuzz.mutate import spoil_bytes, spoil_file, spoil_tree
from xpyd.config.base import ConfigError
from xpyd.config.load import SCHEMAS, dump_config, load_config
from xpyd.model.checkpoint_config import CheckpointError, runnable_spec
from xpyd.placement import PlacementConfig, PlacementError, place
from xpyd.resume import digest
from xpyd.streams import StreamError, completed_blocks
from xpyd.workload.trace_formats import TraceError
from xpyd.workload.traces import TraceConfig

ROOT = Path(__file__).parents[2]
OURS = (str(ROOT / "src"), str(ROOT / "analysis"))
ANALYSE_EVERY = 10  # of the run folders that load: an analysis takes a hundred times as long


class Refusal(Exception):
    """A program of ours ended with its own words and its exit code for bad input."""


class Target(ABC):
    """``told``: the errors that a command line prints as one line."""

    name: ClassVar[str]
    told: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, folder: Path) -> None:
        """``folder``: empty, for files."""
        self.folder = folder

    @abstractmethod
    def feed(self, rng: random.Random) -> None:
        """Make one input and use it. Raises what its use raises."""

    def attempt(self, seed: int) -> bool:
        """True: taken, False: refused with words of our own. Raises what is a finding."""
        try:
            self.feed(random.Random(f"{self.name}-{seed}"))
        except Refusal:
            return False
        except self.told as error:
            if not traceback.extract_tb(error.__traceback__)[-1].filename.startswith(OURS) or not str(error).strip():
                raise
            return False
        return True


class Configs(Target):
    """Composed configurations of every experiment, as they stand after Hydra."""

    name = "configs"
    told = (ConfigError,)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            found = [OmegaConf.to_container(compose(name), resolve=True) for name in SCHEMAS if _has_yaml(name)]
        self._trees: list[Any] = found

    def feed(self, rng: random.Random) -> None:
        config = load_config(spoil_tree(rng.choice(self._trees), rng))
        frozen = dump_config(config)
        again = load_config(yaml.safe_load(yaml.safe_dump(frozen)))
        assert digest(dump_config(again)) == digest(frozen), "what is frozen is the configuration"
        assert config.world_size >= 0


class Traces(Target):
    """Files of every trace format."""

    name = "traces"
    told = (TraceError,)
    files: ClassVar[dict[str, str]] = {
        "mooncake": '{"timestamp": 0, "input_length": 600, "output_length": 50, "hash_ids": [1, 2]}\n'
        '{"timestamp": 27, "input_length": 700, "output_length": 40, "hash_ids": [1, 3]}\n',
        "azure": "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n"
        "2023-11-16 18:17:04.0319600,3180,8\n",
        "burstgpt": "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
        "5,ChatGPT,472,18,490,Conversation log\n45,ChatGPT,1087,230,1317,Conversation log\n",
    }

    def feed(self, rng: random.Random) -> None:
        kind, text = rng.choice(sorted(self.files.items()))
        path = self.folder / "trace"
        path.write_bytes(spoil_bytes(text.encode(), rng))
        config = TraceConfig(kind, str(path), sort=rng.random() < 0.5, skip_empty=rng.random() < 0.5)  # type: ignore[arg-type]
        rows = config.load().rows
        assert min(config.offsets_ns(rows)) >= 0


class Checkpoints(Target):
    """Hugging Face folders: config.json as a tree, and the bytes of the safetensors."""

    name = "checkpoints"
    told = (CheckpointError, ValueError)
    config: ClassVar[dict[str, Any]] = {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "max_position_embeddings": 128,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
        "hidden_act": "silu",
        "sliding_window": None,
    }

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        import torch
        from safetensors.torch import save_file

        from xpyd.model.spec import ModelSpec
        from xpyd.model.weights import load_weights

        self._load, self._spec = load_weights, ModelSpec.__dataclass_fields__
        self._whole = Path(tempfile.mkdtemp(dir=folder)) / "model"
        self._whole.mkdir()
        (self._whole / "config.json").write_text(json.dumps(self.config))
        shapes = {"model.embed_tokens.weight": (64, 32), "model.norm.weight": (32,), "lm_head.weight": (64, 32)}
        for layer in range(2):
            for part, shape in {
                "input_layernorm": (32,),
                "post_attention_layernorm": (32,),
                "self_attn.q_proj": (32, 32),
                "self_attn.k_proj": (16, 32),
                "self_attn.v_proj": (16, 32),
                "self_attn.o_proj": (32, 32),
                "mlp.gate_proj": (48, 32),
                "mlp.up_proj": (48, 32),
                "mlp.down_proj": (32, 48),
            }.items():
                shapes[f"model.layers.{layer}.{part}.weight"] = shape
        save_file({name: torch.zeros(shape) for name, shape in shapes.items()}, self._whole / "model.safetensors")
        with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
            self._tree: Any = OmegaConf.to_container(compose("serve", ["model=micro"]), resolve=True)
        self._load(self._given(self._whole), "cpu")  # the whole one loads

    def feed(self, rng: random.Random) -> None:
        folder = self.folder / "spoiled"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(self._whole, folder)
        if rng.random() < 0.6:
            (folder / "config.json").write_text(json.dumps(spoil_tree(self.config, rng)))
        else:
            spoil_file(folder, rng)
        self._load(self._given(folder), "cpu")

    def _given(self, folder: Path) -> Any:
        from pydantic import TypeAdapter

        from xpyd.model.spec import ModelSpec

        spec = TypeAdapter(ModelSpec).validate_python({**self._tree["model"], "checkpoint": str(folder)})
        return runnable_spec(spec)


class Nodes(Target):
    """Lists of node names, one a rank, as a host file or a Slurm allocation gives them; and any placement on them."""

    name = "nodes"
    told = (PlacementError, ValueError)

    def feed(self, rng: random.Random) -> None:
        names = ["n1", "n2", "n3", "n1.cluster", "", "é", "n 4", "-n", "n1\n", "x" * 300]
        counts = [rng.randint(0, 3) for _ in range(3)]
        kinds = {"prefill": ("tp", "cp", "ep"), "decode": ("tp", "pp", "ep"), "colocated": ("tp", "ep")}
        widths: dict[str, Any] = {f"{role}_{rng.choice(own)}": rng.choice((1, 1, 2, 4)) for role, own in kinds.items()}
        config = PlacementConfig(
            num_prefill=counts[0],
            num_decode=counts[1],
            num_colocated=counts[2] if rng.random() < 0.3 else 0,
            **widths,
            allow_shared_node=rng.random() < 0.5,
        )
        num_ranks = config.world_size if rng.random() < 0.8 else rng.randint(0, 12)
        nodes = [rng.choice(names) for _ in range(num_ranks)]
        found = place(config, nodes)
        assert len(found.nodes) == len(nodes)
        found.describe()


class Hostfiles(Target):
    """Host files of launch/mpirun.sh: it prints the command that it would run, and nothing in the file is run."""

    name = "hostfiles"
    told = ()
    text: ClassVar[str] = "n1 slots=4\nn2:4 # a comment\n\nn3.cluster\nn1\n$(touch ran)\n`touch ran`\nn4; touch ran\n"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        mpirun = folder / "mpirun"
        mpirun.write_text("#!/bin/sh\necho 'mpirun (Open MPI) 5.0.11'\n")
        mpirun.chmod(0o755)
        settings = {"XPYD_DRY_RUN": "1", "XPYD_MPIRUN": str(mpirun), "XPYD_PYTHON": sys.executable}
        self._environment = {**os.environ, **settings, "XPYD_LOG_DIR": str(folder / "logs")}

    def feed(self, rng: random.Random) -> None:
        path = self.folder / "hosts"
        path.write_bytes(spoil_bytes(self.text.encode(), rng))
        command = [str(ROOT / "launch" / "mpirun.sh"), "--hostfile", str(path), "serve"]
        done = subprocess.run(command, cwd=self.folder, env=self._environment, capture_output=True, timeout=15)
        assert not (self.folder / "ran").exists(), "a line of the host file was run"
        if done.returncode == 2 and done.stderr.startswith(b"error: "):
            raise Refusal
        assert done.returncode == 0, done.stderr
        assert b"--hostfile" in done.stdout


class RunFolders(Target):
    """Run folders of a comparison, whole and cut off, with one or two files spoiled. Reading changes nothing."""

    name = "run-folders"
    told = (RunError, StreamError)

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        rows = []
        for pair in range(2):
            rows += block_rows(2 * pair, pair, "colocated", [(100, Way())] * 2)
            rows += block_rows(2 * pair + 1, pair, "disaggregated", [(100, Way(exposed=5, moved=True))] * 2)
        self._sources = [
            write_run(folder / "sources" / ("whole" if done else "partial"), rows, done=done) for done in (True, False)
        ]

    def feed(self, rng: random.Random) -> None:
        folder = self.folder / "spoiled"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(rng.choice(self._sources), folder)
        for _ in range(rng.randint(1, 2)):
            spoil_file(folder, rng)
        before = _content(folder)
        try:
            completed_blocks(folder)  # what a resumed run asks
            run = load_run(folder, allow_partial=rng.random() < 0.7)
            if rng.randrange(ANALYSE_EVERY) == 0 and run.experiment in ANALYSES:
                told(run, ANALYSES[run.experiment])
        finally:
            assert _content(folder) == before, "what was measured is kept as it is"


def _content(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def _has_yaml(name: str) -> bool:
    return (ROOT / "conf" / f"{name}.yaml").exists()


TARGETS: dict[str, type[Target]] = {
    kind.name: kind for kind in (Configs, Traces, Checkpoints, Nodes, Hostfiles, RunFolders)
}
