"""Expert parallelism: whole experts on different ranks, each rank with tokens of its own (arXiv:2006.16668).

A token goes to every rank that holds one of its experts, once, with the numbers and weights of those (dispatch); the
rank runs them and sends their weighted sum back (combine). The shared expert, which every token visits, is on every
rank: it runs in pieces while tokens are on their way. Sums are taken in another order than on one rank, so outputs
equal those within rounding, not bit for bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from xpyd.model.exchange import Exchange, Pending
from xpyd.model.experts import Experts, Router
from xpyd.model.mlp import DenseMlp

SHARED_PIECES = 4  # of a layer's shared expert: between two of them what is on its way moves on
ABSENT = -1


@dataclass
class ParallelExperts:
    """One layer's experts on one rank; an ``Mlp``. ``owners`` [num_experts]: the rank of each.

    ``visits`` [num_experts] counts what this rank's tokens asked for.
    """

    router: Router
    experts: dict[int, DenseMlp]  # this rank's, by number
    owners: torch.Tensor
    shared: DenseMlp | None
    shared_gate: torch.Tensor | None
    exchange: Exchange
    overlap: bool = True
    visits: torch.Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.visits = torch.zeros_like(self.owners)

    @classmethod
    def of(cls, whole: Experts, owners: Sequence[int], exchange: Exchange, overlap: bool) -> ParallelExperts:
        """This rank's part of a layer's experts, each on the rank that ``owners`` names."""
        mine = {number: whole.experts[number] for number, owner in enumerate(owners) if owner == exchange.rank}
        device = whole.router.weight.device
        return cls(
            whole.router, mine, torch.tensor(owners, device=device), whole.shared, whole.shared_gate, exchange, overlap
        )

    def run(self, h: torch.Tensor) -> torch.Tensor:
        """``h`` [num_tokens, hidden_size], this rank's tokens, maybe none; the same shape back. Collective."""
        weights, chosen = self.router.route(h)
        self.visits += chosen.flatten().bincount(minlength=len(self.owners))
        letters = _address(chosen, self.owners, self.exchange.width)
        sending = letters.rank.bincount(minlength=self.exchange.width)
        sending[self.exchange.rank] = 0  # what stays is not sent
        away = letters.rank != self.exchange.rank
        rows = _pack(h, weights, chosen, self.owners, letters)
        receiving = self.exchange.counts(sending.tolist())
        shared = self._shared(h)
        dispatch = self.exchange.start(rows[away], sending.tolist(), receiving)
        early = self._visit(rows[~away], h) if self.overlap else None
        came = self._finish(dispatch, shared)
        own = early if early is not None else self._visit(rows[~away], h)
        combine = self.exchange.start(_bytes(self._visit(came, h)), receiving, sending.tolist())
        out = torch.zeros_like(h).index_add_(0, letters.token[~away], own)
        back = self._finish(combine, shared).view(h.dtype).view(-1, h.shape[1])
        out.index_add_(0, letters.token[away], back)
        return _add(out, shared)

    def _finish(self, pending: Pending, shared: _Shared) -> torch.Tensor:
        """Wait for rows, with as much of the shared expert as fits in between."""
        while self.overlap and not pending.progress() and shared.advance():
            pass
        return pending.finish()

    def _visit(self, rows: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        """What this rank's experts make of packed ``rows``: the weighted sum of each, [num_rows, hidden_size]."""
        tokens, weights, chosen = _unpack(rows, h.shape[1], h.dtype, self.router.shape.num_experts_per_tok)
        out = torch.zeros_like(tokens)
        for number, expert in self.experts.items():
            row, place = (chosen == number).nonzero(as_tuple=True)
            if len(row):
                out.index_add_(0, row, expert.run(tokens[row]) * weights[row, place, None].to(h.dtype))
        return out

    def _shared(self, h: torch.Tensor) -> _Shared:
        return _Shared(self._pieces(h))

    def _pieces(self, h: torch.Tensor) -> Iterator[torch.Tensor]:
        """The shared expert's output in pieces of rows; none where there is no such expert."""
        if self.shared is None or not len(h):
            return
        for piece in h.chunk(SHARED_PIECES):
            made = self.shared.run(piece)
            yield made if self.shared_gate is None else F.linear(piece, self.shared_gate).sigmoid() * made


class _Shared:
    """The shared expert's output as far as it is computed."""

    def __init__(self, pieces: Iterator[torch.Tensor]) -> None:
        self._pieces = pieces
        self.made: list[torch.Tensor] = []

    def advance(self) -> bool:
        """Compute the next piece; False when there is none left."""
        piece = next(self._pieces, None)
        if piece is not None:
            self.made.append(piece)
        return piece is not None


def _add(out: torch.Tensor, shared: _Shared) -> torch.Tensor:
    while shared.advance():
        pass
    return out + torch.cat(shared.made) if shared.made else out


@dataclass(frozen=True)
class _Letters:
    """One for each (rank, token) that meet, in the order of ranks: both [num_letters]."""

    rank: torch.Tensor
    token: torch.Tensor


def _address(chosen: torch.Tensor, owners: torch.Tensor, width: int) -> _Letters:
    asked = torch.zeros((width, len(chosen)), dtype=torch.bool, device=chosen.device)
    asked[owners[chosen].t(), torch.arange(len(chosen), device=chosen.device)] = True
    rank, token = asked.nonzero(as_tuple=True)
    return _Letters(rank, token)


def _pack(
    h: torch.Tensor, weights: torch.Tensor, chosen: torch.Tensor, owners: torch.Tensor, letters: _Letters
) -> torch.Tensor:
    """[num_letters, row bytes] uint8: the token, then the weights and the numbers of its experts on that rank."""
    asked = chosen[letters.token]
    numbers = asked.where(owners[asked] == letters.rank[:, None], ABSENT).to(torch.int32)
    parts = h[letters.token], weights[letters.token].float(), numbers
    return torch.cat([_bytes(part) for part in parts], dim=1)


def _unpack(
    rows: torch.Tensor, hidden: int, dtype: torch.dtype, num_chosen: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The inverse of ``_pack``."""
    sizes = [hidden * dtype.itemsize, 4 * num_chosen, 4 * num_chosen]
    tokens, weights, numbers = (part.contiguous() for part in torch.split(rows, sizes, dim=1))
    return tokens.view(dtype), weights.view(torch.float32), numbers.view(torch.int32)


def _bytes(x: torch.Tensor) -> torch.Tensor:
    """[num_rows, row bytes] uint8."""
    return x.contiguous().view(torch.uint8)
