"""Shared beginnings of prompts: who shares what, from one seed, and how often."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from xpyd.request import Request
from xpyd.workload.arrivals import ArrivalConfig
from xpyd.workload.config import ClassConfig, WorkloadConfig
from xpyd.workload.lengths import LengthConfig
from xpyd.workload.prefixes import PrefixConfig

OWN = LengthConfig("uniform", low=5, high=9)
CLASSES = (
    ClassConfig("system", 0.5, OWN, OWN, PrefixConfig(3, 40, skew=1.0), priority=2),
    ClassConfig("plain", 0.5, OWN, OWN),
)
WORKLOAD = WorkloadConfig(200, arrival=ArrivalConfig("poisson", 10.0), classes=CLASSES)


def beginnings(requests: list[Request]) -> Counter[tuple[int, ...]]:
    return Counter(tuple(r.prompt(1000)[:40].tolist()) for r in requests if r.class_name == "system")


def test_prompts_of_a_class_share_a_few_beginnings_by_popularity() -> None:
    requests = WORKLOAD.build(0)
    found = beginnings(requests)
    assert len(found) == 3
    counts = np.array([count for _, count in found.most_common()])
    assert counts / counts.sum() == pytest.approx(np.array([6, 3, 2]) / 11, abs=0.1)
    assert beginnings(WORKLOAD.build(1)).keys() == found.keys(), "every pair has the same system prompts"
    assert all(r.priority == (2 if r.class_name == "system" else 0) for r in requests)


def test_what_comes_behind_is_each_requests_own() -> None:
    requests = [r for r in WORKLOAD.build(0) if r.class_name == "system"]
    assert all(45 <= r.input_len <= 49 for r in requests)
    assert len({tuple(r.prompt(1000)[40:].tolist()) for r in requests}) == len(requests)
    assert WORKLOAD.max_tokens() == 40 + 9 + 9
    assert WORKLOAD.summary().classes[0].mean_input_len == 47


def test_a_class_without_prefix_is_as_it_was_beside_one_with() -> None:
    plain = replace(WORKLOAD, classes=(replace(CLASSES[0], prefix=None, priority=0), CLASSES[1]))
    for with_prefix, without in zip(WORKLOAD.build(0), plain.build(0), strict=True):
        if with_prefix.class_name == "plain":
            assert with_prefix == without
