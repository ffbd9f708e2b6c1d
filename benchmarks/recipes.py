"""The recipes that people paste into training loops, in our own words, to measure against.

Each does what the widespread version of the trick does (a clone of the embedding table, a clone of
every gradient, parameters found by a part of their name, a patched `forward`, `inputs_embeds`), with
the known mistakes left out, so that a recipe and the kit's strategy of the same name compute the
same gradient and only their costs differ. `tests/test_benchmarks.py` holds them to that.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Batch
from competition_kit.training.model import Classifier
from competition_kit.training.objectives import Criterion

__all__ = ["RECIPES", "Forward", "fgm", "freelb", "library_recipes", "neftune", "pgd", "plain"]

Draw = Callable[[Tensor], Tensor]  # a tensor -> noise like it, uniform on [-1, 1]


class Forward:
    """What a pasted loop has at hand: a model, one batch, its loss and a way to back-propagate.

    Counts the passes (`forwards`, `backwards`) so that costs need not be typed in anywhere.

    Args:
        model: in training mode.
        batch: on the model's device, with labels.
        backward: back-propagates a loss (with loss scaling, in fp16).
        autocast: makes the context of a forward pass (mixed precision), or None.
    """

    def __init__(
        self,
        model: Classifier,
        batch: Batch,
        criterion: Criterion,
        backward: Callable[[Tensor], None] = lambda loss: loss.backward(),
        autocast: Callable[[], AbstractContextManager] | None = None,
    ) -> None:
        self.model = model
        self.batch = batch
        self.forwards = 0
        self.backwards = 0
        self._criterion = criterion
        self._backward = backward
        self._autocast = autocast or nullcontext

    def loss(self) -> Tensor:
        """Return the loss of the batch, from token ids."""
        batch = self.batch
        with self._autocast():
            logits = self.model(batch.input_ids, batch.attention_mask, batch.type_ids)
        return self._loss(logits)

    def loss_at(self, embeddings: Tensor) -> Tensor:
        """Return the loss with these word embeddings [B, T, H] instead of token ids (mean pooling)."""
        model, mask = self.model, self.batch.attention_mask
        segments = {} if self.batch.type_ids is None else {"token_type_ids": self.batch.type_ids}
        with self._autocast():
            hidden = model.encoder(
                inputs_embeds=embeddings, attention_mask=mask, **segments
            ).last_hidden_state
            weights = mask.unsqueeze(-1)
            pooled = (hidden * weights).sum(dim=1) / weights.sum(dim=1)
            logits = model.head(model.dropout(pooled))
        return self._loss(logits)

    def backward(self, loss: Tensor) -> None:
        """Add the loss's gradients to every `.grad`."""
        self._backward(loss)
        self.backwards += 1

    def _loss(self, logits: Tensor) -> Tensor:
        self.forwards += 1
        assert self.batch.labels is not None
        wide = logits if logits.dtype == torch.float64 else logits.float()
        return self._criterion(wide, self.batch.labels).mean()


def plain(forward: Forward) -> None:
    """Plain training: one forward, one backward."""
    forward.backward(forward.loss())


# -- FGM and PGD on the embedding table ---------------------------------------------------------


class _Attack:
    """Moves the embedding table itself, keeping a copy to put back."""

    def __init__(self, model: nn.Module, name: str = "word_embeddings") -> None:
        self.model = model
        self.tables: dict[str, Tensor] = {}
        self._name = name

    def attack(self, length: float, *, save: bool) -> None:
        """Move the table by `length` along its gradient, normalised over the whole table."""
        for name, parameter in self._attacked():
            if save:
                self.tables[name] = parameter.data.clone()
            assert parameter.grad is not None
            norm = parameter.grad.norm()
            if norm != 0 and not torch.isnan(norm):
                parameter.data.add_(length * parameter.grad / norm)

    def project(self, radius: float) -> None:
        """Pull the table back to within `radius` of the copy."""
        for name, parameter in self._attacked():
            offset = parameter.data - self.tables[name]
            norm = offset.norm()
            if norm > radius:
                offset = radius * offset / norm
            parameter.data.copy_(self.tables[name] + offset)

    def restore(self) -> None:
        """Put the copy back."""
        for name, parameter in self._attacked():
            parameter.data.copy_(self.tables[name])
        self.tables.clear()

    def _attacked(self) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and self._name in name:
                yield name, parameter


def fgm(forward: Forward, *, epsilon: float = 1.0) -> None:
    """FGM: clean backward, move the table, second backward on top, put the table back."""
    attacker = _Attack(forward.model)
    forward.backward(forward.loss())
    attacker.attack(epsilon, save=True)
    forward.backward(forward.loss())
    attacker.restore()


def pgd(forward: Forward, *, epsilon: float = 1.0, step_size: float = 0.3, steps: int = 3) -> None:
    """PGD: K moves of the table, each with a whole backward; clean gradients kept as clones."""
    model = forward.model
    attacker = _Attack(model)
    forward.backward(forward.loss())
    clean = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    for t in range(steps):
        attacker.attack(step_size, save=t == 0)
        attacker.project(epsilon)
        if t + 1 < steps:
            model.zero_grad()
        else:  # the last pass adds to the clean gradient
            for name, parameter in model.named_parameters():
                if name in clean:
                    parameter.grad = clean[name]
        forward.backward(forward.loss())
    attacker.restore()


# -- noise and FreeLB on the looked-up embeddings -----------------------------------------------


def _uniform(like: Tensor) -> Tensor:
    return torch.empty_like(like).uniform_(-1.0, 1.0)


@contextmanager
def _patched(embedding: nn.Module, alpha: float, draw: Draw) -> Iterator[None]:
    """Replace the embedding's `forward` by one that adds noise alpha / sqrt(T H), pads included."""
    original = embedding.forward

    def noisy(input_ids: Tensor) -> Tensor:
        embedded = original(input_ids)
        size = embedded.shape[1] * embedded.shape[2]
        return embedded + draw(embedded.detach()) * (alpha / size**0.5)

    embedding.forward = noisy
    try:
        yield
    finally:
        del embedding.forward  # the class's own shows again


def neftune(forward: Forward, *, alpha: float = 5.0, draw: Draw = _uniform) -> None:
    """NEFTune as the patch that people paste (padded length, noise on padding too)."""
    with _patched(forward.model.get_input_embeddings(), alpha, draw):
        forward.backward(forward.loss())


def freelb(
    forward: Forward,
    *,
    steps: int = 3,
    step_size: float = 0.1,
    init: float = 0.1,
    max_norm: float = 0.0,
    draw: Draw = _uniform,
) -> None:
    """FreeLB (l2) as in the authors' loop: `inputs_embeds`, K passes, K - 1 ascents, mean loss.

    Their reuse of the first pass's attention dropout is left out: it needs a patched encoder.
    """
    embed, ids = forward.model.get_input_embeddings(), forward.batch.input_ids
    embeddings = embed(ids)
    mask = forward.batch.attention_mask.to(embeddings.dtype)
    sizes = mask.sum(dim=1) * embeddings.shape[-1]
    noise = draw(embeddings.detach()) * mask.unsqueeze(-1)
    delta = noise * (init / sizes.sqrt()).view(-1, 1, 1)
    for t in range(steps):
        delta = delta.detach().requires_grad_()
        forward.backward(forward.loss_at(embeddings + delta) / steps)
        if t + 1 == steps:
            break
        assert delta.grad is not None
        gradient = delta.grad.clone()
        delta = delta.detach() + step_size * gradient / _norms(gradient).clamp_min(1e-8)
        if max_norm > 0:
            norms = _norms(delta)
            delta = delta * torch.where(norms > max_norm, max_norm / norms, 1.0)
        embeddings = embed(ids)


def _norms(delta: Tensor) -> Tensor:
    """Return the L2 norm of each example, [B, 1, 1]."""
    return delta.flatten(1).norm(dim=1).view(-1, 1, 1)


RECIPES: dict[str, Callable[[Forward], None]] = {
    "none": plain,
    "neftune": neftune,
    "fgm": fgm,
    "pgd": pgd,
    "freelb": freelb,
}


# -- the same from a library ----------------------------------------------------------------------


def library_recipes() -> dict[str, Callable[[Forward], None]]:
    """Return FGM and PGD with bert4torch's own classes, or nothing where it is not installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its own affair
            from bert4torch.callbacks import FGM, PGD
    except ImportError:
        return {}
    name = "word_embeddings"

    def fgm(forward: Forward) -> None:
        attacker = FGM(forward.model)
        forward.backward(forward.loss())
        attacker.attack(epsilon=1.0, emb_name=name)
        forward.backward(forward.loss())
        attacker.restore(emb_name=name)

    def pgd(forward: Forward, steps: int = 3) -> None:
        attacker = PGD(forward.model)
        forward.backward(forward.loss())
        attacker.backup_grad()
        for t in range(steps):
            attacker.attack(epsilon=1.0, alpha=0.3, emb_name=name, is_first_attack=t == 0)
            if t + 1 < steps:
                forward.model.zero_grad()
            else:
                attacker.restore_grad()
            forward.backward(forward.loss())
        attacker.restore(emb_name=name)

    return {"fgm": fgm, "pgd": pgd}
