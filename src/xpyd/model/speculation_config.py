"""Whether decoding guesses ahead, and what guesses. Plain data, for front ends too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Gt

from xpyd.model.checkpoint_config import runnable_spec
from xpyd.model.sampling_config import SamplingConfig
from xpyd.model.spec import ModelSpec


@dataclass(frozen=True)
class SpeculationConfig:
    """Speculative decoding (arXiv:2211.17192), exact under greedy sampling.

    ``draft`` says what guesses ``num_tokens`` tokens a step: ``ngram``, what followed the last ``max_ngram`` tokens (or
    fewer) where they last stood in the request; ``layers``, the first ``num_layers`` layers of the model with its own
    head; ``model``, another ``model``, with weights and a KV pool of its own.
    """

    draft: Literal["none", "ngram", "layers", "model"] = "none"
    num_tokens: Annotated[int, Gt(0)] | None = None
    max_ngram: Annotated[int, Gt(0)] | None = None
    num_layers: Annotated[int, Gt(0)] | None = None
    model: ModelSpec | None = None

    def __post_init__(self) -> None:
        wanted = {
            "num_tokens": self.draft != "none",
            "max_ngram": self.draft == "ngram",
            "num_layers": self.draft == "layers",
            "model": self.draft == "model",
        }
        for key, needed in wanted.items():
            value = getattr(self, key)
            if needed and value is None:
                raise ValueError(f"{key} is not set with draft={self.draft}: give it a value")
            if not needed and value is not None:
                shown = value.name if isinstance(value, ModelSpec) else value
                raise ValueError(f"{key}={shown} with draft={self.draft}, which ignores it: leave it out")

    @property
    def on(self) -> bool:
        return self.draft != "none"

    def check(self, spec: ModelSpec, sampling: SamplingConfig, several_ranks: bool) -> None:
        """Raises ValueError where the draft does not fit the model ``spec``, the sampling or the instances."""
        if not self.on:
            return
        if sampling.temperature:
            raise ValueError(
                f"speculation.draft={self.draft} with sampling.temperature={sampling.temperature}: guesses are held "
                "against the greedy choice; set sampling.temperature=0 or speculation=none"
            )
        if self.num_layers is not None and self.num_layers >= spec.num_layers:
            raise ValueError(
                f"speculation.num_layers={self.num_layers}: model {spec.name} has {spec.num_layers} layers, and a "
                "draft of all of them saves nothing; set fewer"
            )
        if self.draft == "layers" and several_ranks:
            raise ValueError(
                "speculation.draft=layers with instances of several ranks: their leaders draft alone, and have a part "
                "of each layer only; choose speculation=ngram or speculation=model"
            )
        if self.model is not None:
            self._check_model(runnable_spec(self.model), spec)

    def _check_model(self, draft: ModelSpec, spec: ModelSpec) -> None:
        if draft.vocab_size != spec.vocab_size:
            raise ValueError(
                f"speculation.model.vocab_size={draft.vocab_size}, model.vocab_size={spec.vocab_size}: a guess must be "
                "a token of the model; choose a draft with the same vocabulary"
            )
