"""One batch of somebody else's loop, as strategies see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from competition_kit.data.encoding import Batch
from competition_kit.errors import InputError
from competition_kit.training.divergence import Divergence
from competition_kit.training.step import Step

__all__ = ["ComputeLoss", "ModelStep", "input_embeddings", "model_loss"]

# (model, the batch as its forward takes it) -> its scalar loss and its output
ComputeLoss = Callable[[nn.Module, dict[str, Any]], tuple[Tensor, Any]]


def model_loss(model: nn.Module, inputs: dict[str, Any]) -> tuple[Tensor, Any]:
    """Return the loss that a transformers model computes itself, and its output."""
    output = model(**inputs)
    if getattr(output, "loss", None) is None:
        raise InputError(
            "the model returned no loss", remedy="put the labels into the batch, as 'labels'"
        )
    return output.loss, output


class ModelStep(Step):
    """One micro-batch for a transformers model: `strategy(ModelStep(...))` yields its losses.

    The loss has to be the mean over the micro-batch; what it counts for among others is up to the
    loop, which multiplies the losses that it gets.

    Args:
        model: in training mode; has `get_input_embeddings()` and returns `logits`.
        inputs: keyword arguments of its forward, on its device, with `input_ids` [B, T].
        generator: source of the strategy's noise, on the same device.
        compute_loss: runs the model and returns its loss and output.
        about: what `Step` takes by name (`epoch`, `number`, `memory`, `autocast`, `scale`, ...).
    """

    def __init__(
        self,
        model: nn.Module,
        inputs: Mapping[str, Any],
        generator: torch.Generator,
        compute_loss: ComputeLoss = model_loss,
        **about: Any,
    ) -> None:
        passes = _Passes(model, inputs, compute_loss)
        super().__init__(passes, _batch(inputs), passes.objective, generator, **about)
        self._config = getattr(_bare(model), "config", None)

    def between(self, kind: Divergence, reference: Tensor, moved_logits: Tensor) -> Tensor:
        """Return the mean divergence between two predictions of classes, given as logits [B, C].

        Raises:
            InputError: if the model predicts something else.
        """
        regression = getattr(self._config, "problem_type", None) == "regression"
        if regression or reference.ndim != 2 or reference.shape[1] < 2 - self.multi_label:
            task = "does regression" if regression else f"returns logits {list(reference.shape)}"
            raise InputError(
                f"this strategy compares predictions of classes [B, C], and the model {task}",
                remedy="use neftune, fgm, fgsm, pgd, freelb, awp or sam, which need only its loss",
            )
        return super().between(kind, reference, moved_logits)

    @property
    def multi_label(self) -> bool:
        """Whether an example can have several labels: the model's problem type, or its labels."""
        kind = getattr(self._config, "problem_type", None)
        if kind is not None:
            return kind == "multi_label_classification"
        return self.batch.labels is not None and self.batch.labels.ndim == 2


class _Passes(nn.Module):
    """A model with one batch in its hand: every call is a pass that returns logits.

    A module, so that `Step` finds the model's weights and embeddings as in a `Classifier`.
    """

    def __init__(
        self, model: nn.Module, inputs: Mapping[str, Any], compute_loss: ComputeLoss
    ) -> None:
        super().__init__()
        self.model = model
        self._inputs = inputs
        self._compute_loss = compute_loss
        self._loss: Tensor | None = None

    def get_input_embeddings(self) -> nn.Module:
        return input_embeddings(self.model)

    def forward(self, *batch: object) -> Tensor:
        """Return the logits; the batch is the one that this was made with."""
        # a copy, since Trainer takes the labels out; the loss always comes along, since only
        # whoever computes it knows which of the inputs are the model's
        self._loss, output = self._compute_loss(self.model, dict(self._inputs))
        logits = output.get("logits") if isinstance(output, dict) else None
        if not isinstance(logits, Tensor):
            raise InputError(f"the model's output ({type(output).__name__}) has no logits")
        return logits

    def objective(self, step: Step, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the loss and the logits of one pass."""
        logits = step.logits(shift)
        assert self._loss is not None, "the pass just computed it"
        return self._loss, logits


def input_embeddings(model: nn.Module) -> nn.Module:
    """Return a model's word embedding.

    Raises:
        InputError: if it does not say which one it is.
    """
    bare = _bare(model)
    try:
        embedding = bare.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        embedding = None
    if not isinstance(embedding, nn.Module):
        raise InputError(
            f"{type(bare).__name__} has no get_input_embeddings()",
            remedy="strategies shift the word embeddings, so the model has to say which they are",
        )
    return embedding


def _bare(model: nn.Module) -> nn.Module:
    return model.module if isinstance(model, DistributedDataParallel) else model


def _batch(inputs: Mapping[str, Any]) -> Batch:
    ids, mask = inputs.get("input_ids"), inputs.get("attention_mask")
    if not isinstance(ids, Tensor) or ids.ndim != 2:
        raise InputError("the batch has no input_ids [B, T]: there are no tokens to attack")
    if mask is None:
        mask = torch.ones_like(ids)  # what models take it for
    if mask.shape != ids.shape:
        raise InputError(
            f"attention_mask is {list(mask.shape)} and input_ids {list(ids.shape)}",
            remedy="strategies need one number per token: 1 for a token, 0 for padding",
        )
    distinct, slots = torch.unique(ids, return_inverse=True)
    return Batch(ids, mask, None, inputs.get("labels"), slots, len(distinct))
