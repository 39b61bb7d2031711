"""How many sequences decode together on a rank, and what the gaps of each are then: Little's law and a fixed point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil, exp, inf, lgamma, log, sqrt

from xpyd.economics.cost import ComputeModel
from xpyd.economics.scenario import RequestClass, Scenario

MAX_ROUNDS = 1000
EVEN, FAR = 20, 12  # times the ranks squared; standard deviations


@dataclass(frozen=True)
class DecodeBatch:
    """The decodes of one rank, as one of them sees it: ``num_others`` beside itself, and its mean gap by class."""

    num_others: float
    step_s: float  # without a prompt in it
    others_s: float  # what the others add to a step
    gap_s: Callable[[RequestClass], float]  # with the prompts that run beside it

    @property
    def residual_step_s(self) -> float:
        """Mean time that something new waits for a running step to end, the number of decodes being Poisson."""
        return (1 - exp(-self.num_others)) * self.step_s / 2


def decode_batch(
    compute: ComputeModel,
    scenario: Scenario,
    rate_rps: float,
    num_ranks: int,
    prompts_s: float,
    stolen_s: float,
    wait_s: float = 0.0,
    prefill_s: float = 0.0,
) -> DecodeBatch:
    """The mean decode batch of one rank: a fixed point between how long requests stay and how many meet there.

    By Little's law Y others are on the rank of a request where Y arrive there while it is: ``wait_s`` and ``prefill_s``
    of a rank that prefills too, and its stay ``R = (O - 1) * step(1 + X) + Z * stolen_s``. Of them X decode, by the
    share of that time. Z is the prompts computed beside its own decode: those that come later, first in first out, so
    all Y but the last ones, of which half a prefill is left when it ends. Y follows from R (``_others``); both only
    grow, and Y has a bound, so that repeating the pair converges. ``prompts_s`` is the least time between two prompts
    of the cluster.
    """
    num_gaps = scenario.mean([cls.num_gaps for cls in scenario.classes])
    seq_s = compute.decode_s(1, _mean_context_len(scenario))
    lasts_s = scenario.num_requests * max(1 / rate_rps, prompts_s)
    others, prompts, stay_s = 0.0, 0.0, num_gaps * (compute.base_s + seq_s)
    for _ in range(MAX_ROUNDS):
        here_s = wait_s + prefill_s + stay_s
        met = _others(scenario, here_s, lasts_s, num_ranks)
        others = met * stay_s / here_s if here_s else 0.0
        prompts = met * (1 - prefill_s / 2 / here_s) if here_s else 0.0
        last_s, stay_s = stay_s, num_gaps * (compute.base_s + seq_s * (1 + others)) + prompts * stolen_s
        if stay_s - last_s <= 1e-9 * stay_s:
            break
    mean_step_s = compute.base_s + seq_s * (1 + others)
    mean_stall_s = prompts * stolen_s / num_gaps if num_gaps else 0.0

    def gap_s(cls: RequestClass) -> float:
        step_s = compute.base_s + compute.decode_s(1, cls.context_len) + others * seq_s
        stall_s = mean_stall_s * (step_s / mean_step_s if mean_step_s else 1.0)  # longer steps meet more prompts
        return step_s + min(stall_s, _longest_stall_s(compute, scenario))

    return DecodeBatch(others, mean_step_s, others * seq_s, gap_s)


def _others(scenario: Scenario, stay_s: float, lasts_s: float, num_ranks: int) -> float:
    """How many others are on the rank of a request beside it, when each stays ``stay_s`` in a block of ``lasts_s``.

    Two requests at random moments of the block share ``r (1 - r / 3)`` of a stay, ``r = stay / block`` (1 - 1 / (3 r)
    for stays longer than the block): the rate times the stay in a long block, less where it starts and ends.
    """
    r = stay_s / lasts_s
    at_once = (scenario.num_requests - 1) * (r * (1 - r / 3) if r < 1 else 1 - 1 / (3 * r))
    if scenario.concurrency is not None:
        at_once = min(at_once, scenario.concurrency - 1)
    if scenario.router == "round_robin":
        met = _in_turn(at_once, num_ranks)
    else:
        lengths = [cls.input_len + cls.output_len for cls in scenario.classes]
        cv2 = max(0.0, scenario.mean([n * n for n in lengths]) / scenario.mean(lengths) ** 2 - 1)
        balanced, at_random = _balanced(at_once, num_ranks), at_once / num_ranks
        met = balanced + (at_random - balanced) * cv2 / (1 + cv2)
    return min(scenario.num_seats - 1.0, met)


def _in_turn(at_once: float, num_ranks: int) -> float:
    """Others on one's own rank where every ``num_ranks``-th comes there: ``E[floor(n / ranks)]``, n Poisson."""
    if at_once == 0:
        return 0.0
    if at_once > EVEN * num_ranks**2:
        return (at_once - (num_ranks - 1) / 2) / num_ranks  # the rest of the division is any number as likely
    last = ceil(at_once + FAR * (1 + sqrt(at_once)))
    return sum(n // num_ranks * exp(n * log(at_once) - at_once - lgamma(n + 1)) for n in range(num_ranks, last))


def _balanced(at_once: float, num_ranks: int) -> float:
    """Others on one's own rank where newcomers take the emptiest: ``E[max(0, (n + 1) / ranks - 1)]``, n Poisson.

    True of requests of one length. Where lengths differ, ``_others`` leans towards chance by their variation: a rank
    with one document counts as full, and short requests meet on the others.
    """
    short, probability = 0.0, exp(-at_once)  # E[max(0, x)] = E[x] + E[max(0, -x)], and x < 0 only for n < ranks - 1
    for n in range(num_ranks - 1):
        short += probability * (1 - (n + 1) / num_ranks)
        probability *= at_once / (n + 1)
    return (at_once + 1) / num_ranks - 1 + short


def _longest_stall_s(compute: ComputeModel, scenario: Scenario) -> float:
    """The most that prompts can add to a gap: a full chunk; no bound where prompts run whole, one after the other."""
    if scenario.chunk_tokens is None:
        return inf
    longest = max(cls.input_len for cls in scenario.classes)
    return compute.chunk_s(scenario.chunk_tokens, max(0.0, longest - scenario.chunk_tokens) / 2)


def _mean_context_len(scenario: Scenario) -> float:
    """Mean context of the sequences in a decode batch: a class counts by the steps that it is there for."""
    num_gaps = [cls.num_gaps for cls in scenario.classes]
    total = scenario.mean([cls.num_gaps * cls.context_len for cls in scenario.classes])
    return total / scenario.mean(num_gaps) if any(num_gaps) else 0.0
