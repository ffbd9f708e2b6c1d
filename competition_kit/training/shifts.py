"""Shifts of a batch's word embeddings: how they are made, measured, turned and projected.

A *shift* is a tensor [B, T, H] added to the output of the word embeddings (H is their width).
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Batch

__all__ = ["Norm", "Scope", "ShiftSpace"]

Scope = Literal["table", "example", "token"]
Norm = Literal["l2", "linf"]


class ShiftSpace:
    """The space in which the shifts of one batch live.

    Args:
        batch: on the embedding's device.
        embedding: the word embedding.
        generator: source of noise, on the same device.
    """

    def __init__(self, batch: Batch, embedding: nn.Module, generator: torch.Generator) -> None:
        self.batch = batch
        self.generator = generator
        self._embedding = embedding
        self._attended = batch.attention_mask.unsqueeze(-1)  # [B, T, 1]

    def new_shift(self, start: Tensor | None = None) -> Tensor:
        """Return a leaf [B, T, H] that collects `.grad`: zeros, or a detached copy of `start`."""
        if start is not None:
            return start.detach().requires_grad_()
        return self._empty().zero_().requires_grad_()

    def uniform(self) -> Tensor:
        """Return noise [B, T, H], uniform on [-1, 1], from the strategy's own generator."""
        return self._empty().uniform_(-1.0, 1.0, generator=self.generator)

    def gaussian(self) -> Tensor:
        """Return noise [B, T, H], standard normal, from the strategy's own generator."""
        return self._empty().normal_(generator=self.generator)

    @property
    def mask(self) -> Tensor:
        """[B, T, 1], one where there is a token and zero on padding, in the shift's dtype."""
        return self._attended.to(self._weight.dtype)

    @property
    def lengths(self) -> Tensor:
        """[B, 1, 1] true length of each example."""
        return self.mask.sum(dim=1, keepdim=True)

    @property
    def padded_length(self) -> int:
        """T, the length that the batch was padded to."""
        return self.batch.input_ids.shape[1]

    @property
    def width(self) -> int:
        """H, the width of the word embeddings."""
        return self._weight.shape[1]

    def norm(self, shift: Tensor, scope: Scope, order: Norm = "l2") -> Tensor:
        """Return the norm of a shift, shaped to divide it.

        `example`: [B, 1, 1]; `token`: [B, T, 1]; `table`: [1, 1, 1], the Frobenius norm of the
        change of the embedding table that equals this shift (each distinct token counts once).
        """
        dims = {"example": (1, 2), "token": (2,), "table": (0, 1, 2)}[scope]
        if order == "linf":
            return shift.abs().amax(dim=dims, keepdim=True)
        squares = shift.square()
        if scope == "table":
            squares = squares * self._once
        return squares.sum(dim=dims, keepdim=True).sqrt()

    def unit(self, gradient: Tensor, scope: Scope, order: Norm = "l2") -> Tensor:
        """Return the direction of a gradient: norm 1 in its scope, zero on padding.

        For `table` the gradient is first summed over the occurrences of each token, which is the
        gradient of the embedding table; its padding row gets none, as `nn.Embedding` has it.
        A zero gradient gives zero. So does one that is not finite (an fp16 overflow: the
        scaler will skip this step anyway).
        """
        gradient = gradient * self.mask
        if scope == "table":
            gradient = self._summed_per_token(gradient)
        # dividing by the largest entry first keeps the squares of tiny gradients from vanishing
        peak = self.norm(gradient, scope, "linf")
        gradient = gradient / peak.clamp_min(torch.finfo(peak.dtype).tiny)
        norm = self.norm(gradient, scope, order)
        direction = gradient / norm.clamp_min(torch.finfo(norm.dtype).tiny)
        return direction.where(torch.isfinite(peak), 0.0)

    def sign(self, gradient: Tensor) -> Tensor:
        """Return the sign of each element of a gradient, zero on padding and where it is NaN."""
        return (gradient * self.mask).sign().nan_to_num(0.0)

    def cosine(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the mean over examples of the cosine between two shifts."""
        dots = (a * b).flatten(1).sum(dim=1)
        norms = self.norm(a, "example") * self.norm(b, "example")
        return (dots / norms.flatten().clamp_min(torch.finfo(dots.dtype).tiny)).mean().detach()

    def unit_of(self, gradient: Tensor, length: Tensor | float = 1.0) -> Tensor:
        """Return a weight's gradient with this L2 norm; zero if it is zero or not finite."""
        (unit,) = self.units_together([gradient], length)
        return unit

    def units_together(self, gradients: list[Tensor], length: Tensor | float = 1.0) -> list[Tensor]:
        """Scale gradients to this joint L2 norm, zeros if they are not finite; return the list.

        The list's entries are replaced one by one: two sets of weight gradients are never held. The
        length is an argument as each pass over all weights costs as much as a layer's forward.
        """
        norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
        tiny = torch.finfo(norm.dtype).tiny
        factor = torch.where(torch.isfinite(norm), 1.0 / norm.clamp_min(tiny), 0.0) * length
        for number, gradient in enumerate(gradients):
            gradients[number] = gradient.nan_to_num(0.0, 0.0, 0.0).mul_(factor)
        return gradients

    def project(self, shift: Tensor, radius: float, scope: Scope, order: Norm = "l2") -> Tensor:
        """Return the nearest shift whose norm in its scope is at most `radius`."""
        if order == "linf":
            return shift.clamp(-radius, radius)
        norm = self.norm(shift, scope)
        return shift * (radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)

    @property
    def _weight(self) -> Tensor:
        return self._embedding.weight  # type: ignore[return-value]

    def _empty(self) -> Tensor:
        return self._weight.new_empty((*self.batch.input_ids.shape, self.width))

    def _summed_per_token(self, gradient: Tensor) -> Tensor:
        """Replace each position's gradient by the sum over all positions with the same token."""
        padding = getattr(self._embedding, "padding_idx", None)
        if padding is not None:
            gradient = gradient * (self.batch.input_ids != padding).unsqueeze(-1)
        slots = self.batch.slots.flatten()
        rows = gradient.new_zeros((self.batch.distinct, self.width))  # [U, H], never the table
        rows.index_add_(0, slots, gradient.flatten(0, 1))
        return rows[slots].view_as(gradient)

    @property
    def _once(self) -> Tensor:
        """[B, T, 1] weights 1 / (occurrences of the token in the batch)."""
        slots = self.batch.slots
        # in fp32: half precision cannot count beyond 256
        counts = torch.zeros(self.batch.distinct, device=slots.device)
        counts.index_add_(0, slots.flatten(), counts.new_ones(slots.numel()))
        return counts[slots].to(self._weight.dtype).reciprocal().unsqueeze(-1)
