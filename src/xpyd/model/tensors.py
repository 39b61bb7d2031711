"""What the parts of a layer share: how they ask for their weights, how matrices are laid out, and the norm."""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F

from xpyd import native

Shape = tuple[int, ...]
HALF = {torch.float32: 0, torch.bfloat16: 1}  # number types of the compiled functions
TYPICAL_ROWS = 32  # oneDNN's layout is the same for all numbers of rows but one
FEWEST_ROWS = 4  # its product with one row reads the matrix more slowly than that with four
Part = tuple[slice, ...]  # what is wanted of a tensor, one slice per dimension; () is all of it


class Take(Protocol):
    """Where weights come from: a tensor by its Hugging Face name, on the device and in the model's dtype."""

    def __call__(self, name: str, *shape: int, part: Part = (), wide: bool = False) -> torch.Tensor:
        """``part`` of the tensor of this whole shape; ``wide``: in float32, whatever the model's dtype is.

        Raises CheckpointError for one that is missing or misshapen.
        """


def rows_of(part: range, size: int = 1) -> slice:
    """Rows or columns of the things of ``part``, ``size`` for each."""
    return slice(part.start * size, part.stop * size)


class Linear:
    """The product with one [out, in] matrix, in the memory layout that is fastest on its device.

    In float32 on a CPU panels for the compiled product, where it was compiled; otherwise on a CPU oneDNN's own layout
    (docs/performance.md has the figures); elsewhere, and where oneDNN does not multiply the dtype, [in, out], with
    which products with few rows (decode) are faster.
    """

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None = None) -> None:
        self.dtype = weight.dtype
        self.shape = weight.shape[0], weight.shape[1]
        self.bias = bias
        self._kernels = native.multiplying() if weight.is_cpu and weight.dtype == torch.float32 else None
        self._is_packed = self._kernels is None and _packs(weight)
        self.panels: torch.Tensor | None = None
        if self._kernels is not None:
            self.panels = _panels(weight)
        elif self._is_packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), TYPICAL_ROWS)
        else:
            self._weight = weight.t().contiguous().t()

    @property
    def matrix(self) -> torch.Tensor:
        """The [out, in] matrix; a copy where it is laid out otherwise."""
        if self.panels is not None:
            return self.panels.transpose(1, 2).flatten(0, 1)[: self.shape[0]]
        matrix: torch.Tensor = self._weight.to_dense() if self._is_packed else self._weight
        return matrix

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` [num_rows, in]; [num_rows, out]."""
        if self._kernels is not None and self.panels is not None:
            return self._multiply(self._kernels, self.panels, x)
        num_rows = x.shape[0]
        if not self._is_packed:
            return F.linear(x, self._weight, self.bias)
        if not num_rows:
            return x.new_empty((0, self.shape[0]))
        if num_rows == 1:
            x = x.expand(FEWEST_ROWS, -1)
        product: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, self.bias, "none", [], "")
        return product[:num_rows]

    def _multiply(self, kernels: native.Kernels, panels: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        num_rows = x.shape[0]
        if x.stride(1) != 1:
            x = x.contiguous()
        out = x.new_empty((num_rows, self.shape[0]))
        kernels.xpyd_multiply(
            panels.data_ptr(),
            *self.shape,
            x.data_ptr(),
            x.stride(0),
            num_rows,
            out.data_ptr(),
            torch.get_num_threads(),
        )
        return out if self.bias is None else out.add_(self.bias)


def _panels(weight: torch.Tensor) -> torch.Tensor:
    """``weight`` [out, in] as [ceil(out / COLUMNS), in, COLUMNS], zeros behind the last row; see native.Matrix."""
    num_out, num_in = weight.shape
    num_panels = -(-num_out // native.COLUMNS)
    panels = torch.empty((num_panels, num_in, native.COLUMNS))
    native.use_huge_pages(panels.data_ptr(), panels.nbytes)
    rows = F.pad(weight, (0, 0, 0, num_panels * native.COLUMNS - num_out))
    return panels.copy_(rows.view(num_panels, native.COLUMNS, num_in).transpose(1, 2))


def _packs(weight: torch.Tensor) -> bool:
    """Whether oneDNN multiplies such matrices in a layout of its own."""
    if not weight.is_cpu or not weight.numel() or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    bfloat16 = weight.dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return weight.dtype == torch.float32 or bool(bfloat16)


def fuse(matrices: list[torch.Tensor], bias: torch.Tensor | None = None) -> Linear:
    """Matrices that read the same input, one below the other: one product."""
    return Linear(torch.cat(matrices), bias)


def kernels_for(x: torch.Tensor) -> native.Kernels | None:
    """The compiled functions, where they can read ``x``: in host memory, of a type that they know."""
    return native.kernels() if x.is_cpu and x.dtype in HALF else None


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """``weight * x / sqrt(mean(x^2) + eps)`` over the last dimension, computed in float32 (arXiv:1910.07467)."""
    kernels = kernels_for(x)
    if kernels is not None and x.is_contiguous():
        out, size = torch.empty_like(x), x.shape[-1]
        kernels.xpyd_norm(HALF[x.dtype], x.data_ptr(), weight.data_ptr(), out.data_ptr(), x.numel() // size, size, eps)
        return out
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return weight * wide.to(x.dtype)


def gated(gate_up: torch.Tensor) -> torch.Tensor:
    """``silu(gate) * up`` of [num_rows, 2 * size], gates first; [num_rows, size]."""
    kernels = kernels_for(gate_up)
    if kernels is None or not gate_up.is_contiguous():
        gate, up = gate_up.chunk(2, dim=-1)
        return F.silu(gate) * up
    num_rows, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty((num_rows, size))
    kernels.xpyd_gate(HALF[gate_up.dtype], gate_up.data_ptr(), out.data_ptr(), num_rows, size)
    return out
