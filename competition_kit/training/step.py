"""What a strategy may know: one batch, its loss at a shifted embedding, and the geometry of shifts.

A *shift* is a tensor [B, T, H] added to the output of the word embeddings (H is their width).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal, Protocol

import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Batch

__all__ = ["Objective", "Scope", "Step"]

Scope = Literal["table", "example", "token"]
Norm = Literal["l2", "linf"]


class Objective(Protocol):
    """The loss of one forward pass; see `competition_kit.training.objectives`."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor: ...


def _identity(loss: Tensor) -> Tensor:
    return loss


class Step:
    """One micro-batch of one optimizer step, as strategies see it.

    Strategies yield losses made by `loss(shift)`; the loop back-propagates them. The counters say
    what a step really did: `forwards`, `input_backwards` (gradients of a shift alone).

    Args:
        model: a `Classifier`, in training mode.
        batch: on the model's device, with labels.
        objective: logits [B, C], labels -> scalar.
        generator: source of the strategy's noise, on the model's device.
        autocast: makes the context of a forward pass (mixed precision), or None.
        scale: multiplies a loss before an input-only backward (fp16 needs it: small gradients
            would vanish). Directions are normalised, so the factor never reaches a strategy.
    """

    def __init__(
        self,
        model: nn.Module,
        batch: Batch,
        objective: Objective,
        generator: torch.Generator,
        autocast: Callable[[], AbstractContextManager] | None = None,
        scale: Callable[[Tensor], Tensor] = _identity,
    ) -> None:
        self.model = model
        self.batch = batch
        self.objective = objective
        self.generator = generator
        self.forwards = 0
        self.input_backwards = 0
        self.first_loss: Tensor | None = None  # detached; of the first pass, before any weighting
        self.shift_norm: Tensor | None = None  # largest mean over examples of a pass's shift norm
        self._autocast = autocast or nullcontext
        self._scale = scale
        self._embedding: nn.Module = model.get_input_embeddings()  # type: ignore[operator]
        self._standing: Tensor | None = None
        self._attended = batch.attention_mask.unsqueeze(-1)  # [B, T, 1]

    # -- passes -----------------------------------------------------------------------------

    def logits(self, shift: Tensor | None = None) -> Tensor:
        """Return the logits [B, C] with the embeddings shifted; at least fp32."""
        total = shift if self._standing is None else self._standing
        if shift is not None and self._standing is not None:
            total = self._standing + shift
        with _shifted(self._embedding, total), self._autocast():
            logits = self.model(
                self.batch.input_ids, self.batch.attention_mask, self.batch.type_ids
            )
        self.forwards += 1
        if total is not None:
            norm = total.detach().flatten(1).norm(dim=1).mean()
            self.shift_norm = norm if self.shift_norm is None else self.shift_norm.maximum(norm)
        return logits if logits.dtype == torch.float64 else logits.float()

    def loss(self, shift: Tensor | None = None) -> Tensor:
        """Return the objective's scalar loss, the mean over the batch, at the shifted embeddings."""
        assert self.batch.labels is not None, "training batches carry labels"
        loss = self.objective(self.logits(shift), self.batch.labels)
        if self.first_loss is None:
            self.first_loss = loss.detach()
        return loss

    def gradient(self, shift: Tensor) -> Tensor:
        """Return dLoss/dshift [B, T, H] by a backward pass that computes no weight gradient.

        About half the cost of a full backward; leaves every `.grad` as it was.
        """
        leaf = shift.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(self._scale(self.loss(leaf)), leaf)
        self.input_backwards += 1
        return gradient

    @contextmanager
    def standing(self, shift: Tensor) -> Iterator[None]:
        """Keep a constant shift in every pass inside the block, beside each pass's own."""
        outer = self._standing
        self._standing = shift if outer is None else outer + shift
        try:
            yield
        finally:
            self._standing = outer

    # -- shifts -----------------------------------------------------------------------------

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

    # -- geometry ---------------------------------------------------------------------------

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

    def project(self, shift: Tensor, radius: float, scope: Scope, order: Norm = "l2") -> Tensor:
        """Return the nearest shift whose norm in its scope is at most `radius`."""
        if order == "linf":
            return shift.clamp(-radius, radius)
        norm = self.norm(shift, scope)
        return shift * (radius / norm.clamp_min(torch.finfo(norm.dtype).tiny)).clamp_max(1.0)

    # -- inside -----------------------------------------------------------------------------

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
        counts = torch.zeros(self.batch.distinct, dtype=self._weight.dtype, device=slots.device)
        counts.index_add_(0, slots.flatten(), counts.new_ones(slots.numel()))
        return counts[slots].reciprocal().unsqueeze(-1)


@contextmanager
def _shifted(embedding: nn.Module, shift: Tensor | None) -> Iterator[None]:
    """Add `shift` to the embedding's output while the block runs.

    A forward hook: no weight is touched, nothing is left behind on any exit, and position ids,
    segments and the embedding LayerNorm work as they do for plain token ids.

    Raises:
        RuntimeError: if the model never looked its tokens up here (the shift would do nothing).
    """
    if shift is None:
        yield
        return
    calls = 0

    def add(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return output + shift

    handle = embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()
    if calls != 1:
        raise RuntimeError(
            f"the model called get_input_embeddings() {calls} times in a pass where 1 was expected: "
            "a shift of the embeddings would not mean what it says"
        )
