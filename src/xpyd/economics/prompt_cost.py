"""What a prompt costs by its length alone, whatever else is on its rank and on the link."""

from __future__ import annotations

from dataclasses import dataclass

from xpyd.economics.cost import ComputeModel
from xpyd.economics.predict import num_mixed_steps, overlap, prefill_s, stolen_s
from xpyd.economics.scenario import RequestClass, Scenario


@dataclass(frozen=True, slots=True)
class PromptCost:
    """``alone_s``: its prefill with nothing beside it; decodes lengthen ``num_mixed_steps`` of its steps.

    ``stolen_s`` is what it takes from every decode of its rank. Its KV is ``num_bytes`` in ``num_pieces``, which leave
    in ``num_parts`` that become final within ``window_s`` (``economics.predict.overlap``).
    """

    alone_s: float
    num_mixed_steps: int
    stolen_s: float
    num_bytes: int
    num_pieces: int
    num_parts: int
    window_s: float

    def prefill_s(self, beside_s: float) -> float:
        """PREFILL_BEGIN to PREFILL_END; ``beside_s`` is what decodes add to a step."""
        return self.alone_s + self.num_mixed_steps * beside_s


def prompt_cost(compute: ComputeModel, scenario: Scenario, input_len: int) -> PromptCost:
    """By the closed forms of ``economics.predict``."""
    cls = RequestClass(1.0, input_len, 1)
    num_parts, window_s = overlap(compute, scenario, cls)
    return PromptCost(
        alone_s=prefill_s(compute, scenario, cls, 0.0),
        num_mixed_steps=num_mixed_steps(scenario, cls),
        stolen_s=stolen_s(compute, scenario, cls),
        num_bytes=scenario.transfer_bytes(input_len),
        num_pieces=scenario.num_descriptors(input_len),
        num_parts=num_parts,
        window_s=window_s,
    )
