"""The prompts of the codec probe, random or from a file, and the blocks that each of them takes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from xpyd.worker.sweeps import CodecSweep


@dataclass(frozen=True)
class PlacedPrompt:
    """A prompt, the blocks where prefill leaves its KV, and those where decoding goes on, with room for the output."""

    tokens: list[int]
    source: list[int]
    landing: list[int]

    def used_in_last(self, block_size: int) -> int:
        """Tokens of the prompt in its last block."""
        return len(self.tokens) - (len(self.source) - 1) * block_size

    @property
    def landed(self) -> list[int]:
        """The landing blocks that a transfer fills."""
        return self.landing[: len(self.source)]


def place_prompts(sweep: CodecSweep, vocab_size: int) -> list[PlacedPrompt]:
    """Prompts of each length in blocks of their own. Raises ValueError for a file that does not hold them."""
    chosen = _random(sweep, vocab_size) if sweep.prompts is None else _from_file(sweep, sweep.prompts, vocab_size)
    placed, used = [], 0
    for tokens in chosen:
        num_source = -(-len(tokens) // sweep.block_size)
        num_landing = sweep.landing_blocks(len(tokens))
        blocks = list(range(used, used + num_source + num_landing))
        placed.append(PlacedPrompt(tokens, blocks[:num_source], blocks[num_source:]))
        used += len(blocks)
    return placed


def _random(sweep: CodecSweep, vocab_size: int) -> Iterator[list[int]]:
    generator = np.random.default_rng(sweep.seed)
    for length in sweep.input_lens:
        for _ in range(sweep.num_prompts):
            yield generator.integers(0, vocab_size, length).tolist()


def _from_file(sweep: CodecSweep, name: str, vocab_size: int) -> Iterator[list[int]]:
    """For each length the first prompts of the file that are as long, cut to it."""
    known = _read(name, vocab_size)
    for length in sweep.input_lens:
        enough = [tokens[:length] for tokens in known if len(tokens) >= length]
        if len(enough) < sweep.num_prompts:
            raise ValueError(
                f"sweep.prompts={name}: {len(enough)} of its {len(known)} prompts have {length} tokens or more, "
                f"sweep.num_prompts={sweep.num_prompts} are needed; add longer ones or lower sweep.input_lens"
            )
        yield from enough[: sweep.num_prompts]


def _read(name: str, vocab_size: int) -> list[list[int]]:
    try:
        known = json.loads(Path(name).read_text())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"sweep.prompts={name}: cannot be read ({error}); give a JSON list of lists of tokens"
        ) from None
    if not isinstance(known, list) or not all(isinstance(tokens, list) for tokens in known):
        raise ValueError(f"sweep.prompts={name}: no list of lists; give a JSON list of lists of token ids")
    for number, tokens in enumerate(known):
        wrong = next((t for t in tokens if type(t) is not int or not 0 <= t < vocab_size), None)
        if wrong is not None:
            raise ValueError(
                f"sweep.prompts={name}: prompt {number} holds {wrong!r}, the model's tokens are whole numbers from 0 "
                f"to {vocab_size - 1}; encode the prompts with the checkpoint's own tokenizer"
            )
    return known
