"""The tricks a second time, as a competitor would write them: slow, obvious, in float64.

Nothing here uses `competition_kit.strategies` or `competition_kit.training.step`. The two sides
share the model (its forward pass is not what is tested), torch's autograd, and, where noise is
drawn, the random numbers: a reference draws `empty(B, T, H).uniform_(-1, 1)` (or `.normal_()`) once
from a `torch.Generator` that its caller seeds like the strategy's.

Scope "table" is the pasted recipe: parameters are found by the name "word_embeddings", the table of
a deep copy is really moved (`attack`, `restore`), gradients are backed up and zeroed in between.
Scopes "example" and "token" wrap the embedding module of a deep copy in a module that adds a
constant, read dL/dE off the embedding's output, and take norms in Python loops over texts and
tokens.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Batch
from competition_kit.training.model import Classifier

from .tools import Gradients, added, gradients, l2, true_lengths

Shape = str  # "table", "example" or "token"


# -- the model as the references see it ---------------------------------------------------------


class Shifted(nn.Module):
    """An embedding that adds a constant to its output and keeps the gradient of the sum."""

    def __init__(self, inner: nn.Module, shift: Tensor | None) -> None:
        super().__init__()
        self.inner = inner
        self.shift = shift
        self.output: Tensor | None = None

    def forward(self, ids: Tensor) -> Tensor:
        output = self.inner(ids)
        if self.shift is not None:
            output = output + self.shift
        if output.requires_grad:
            output.retain_grad()
        self.output = output
        return output


def loss_of(model: Classifier, batch: Batch) -> Tensor:
    return mean_loss(model(batch.input_ids, batch.attention_mask, batch.type_ids), batch)


def mean_loss(logits: Tensor, batch: Batch) -> Tensor:
    """Return the mean of -log p(label), or of the binary cross-entropy over rows and labels."""
    assert batch.labels is not None
    if batch.labels.ndim == 1:
        log_p = logits - logits.logsumexp(dim=1, keepdim=True)
        return -log_p[torch.arange(len(logits)), batch.labels].mean()
    y = batch.labels.to(logits.dtype)
    p = 1 / (1 + torch.exp(-logits))
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def gradients_at(model: Classifier, batch: Batch, shift: Tensor | None) -> tuple[Gradients, Tensor]:
    """Return dL/dtheta, and dL/dE [B, T, H], with a constant added to the embeddings.

    A deep copy is changed and thrown away, so that passes share nothing.
    """
    model = copy.deepcopy(model)
    model.zero_grad()
    names = dict(model.named_parameters())  # before the wrapper renames the table
    wrapped = Shifted(model.get_input_embeddings(), shift)
    model.encoder.set_input_embeddings(wrapped)  # type: ignore[operator]
    loss_of(model, batch).backward()
    assert wrapped.output is not None and wrapped.output.grad is not None
    found = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone() for name, p in names.items()
    }
    return found, wrapped.output.grad.clone()


def direction(gradient: Tensor, batch: Batch, scope: Shape, norm: str = "l2") -> Tensor:
    """Return g / ||g|| per text or per token, text by text; padding stays zero."""
    size: Callable[[Tensor], float] = (
        l2 if norm == "l2" else lambda t: max(map(abs, t.flatten().tolist()))
    )
    out = torch.zeros_like(gradient)
    for i, length in enumerate(true_lengths(batch)):
        if scope == "example":
            part = gradient[i, :length]
            out[i, :length] = part / size(part)
        else:
            for t in range(length):
                out[i, t] = gradient[i, t] / size(gradient[i, t])
    return out


def inside_ball(shift: Tensor, radius: float, batch: Batch, scope: Shape) -> Tensor:
    """Scale each text's (or token's) shift back to the ball where it left it."""
    out = shift.clone()
    for i, length in enumerate(true_lengths(batch)):
        parts = [out[i]] if scope == "example" else [out[i, t] for t in range(length)]
        for part in parts:
            if l2(part) > radius:
                part *= radius / l2(part)
    return out


# -- none, neftune ------------------------------------------------------------------------------


def plain(model: Classifier, batch: Batch) -> Gradients:
    return gradients_at(model, batch, None)[0]


def neftune_noise(
    model: Classifier,
    batch: Batch,
    generator: torch.Generator,
    *,
    alpha: float,
    noise: str,
    length: str,
) -> Tensor:
    """alpha / sqrt(n d) * U(-1, 1); the gaussian one has the same variance, alpha^2 / (3 n d)."""
    rows, padded = batch.input_ids.shape
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[union-attr]
    draw = torch.empty(rows, padded, width, dtype=torch.float64)
    if noise == "uniform":
        draw.uniform_(-1, 1, generator=generator)
    else:
        draw.normal_(generator=generator)
        draw *= math.sqrt(1 / 3)  # U(-1, 1) has variance 1 / 3
    for i, n in enumerate(true_lengths(batch)):
        if length == "padded":
            draw[i] *= alpha / math.sqrt(padded * width)
        else:
            draw[i, :n] *= alpha / math.sqrt(n * width)
            draw[i, n:] = 0
    return draw


def neftune(
    model: Classifier,
    batch: Batch,
    generator: torch.Generator,
    *,
    alpha: float,
    noise: str = "uniform",
    length: str = "true",
) -> Gradients:
    shift = neftune_noise(model, batch, generator, alpha=alpha, noise=noise, length=length)
    return gradients_at(model, batch, shift)[0]


# -- fgm ----------------------------------------------------------------------------------------


class TableFGM:
    """The pasted recipe: `attack` moves the table, `restore` puts it back."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.backup: dict[str, Tensor] = {}

    def attack(self, epsilon: float) -> None:
        for name, parameter in self.model.named_parameters():
            if "word_embeddings" in name:
                assert parameter.grad is not None
                self.backup[name] = parameter.data.clone()
                norm = torch.norm(parameter.grad)
                if norm != 0 and torch.isfinite(norm):
                    parameter.data.add_(epsilon * parameter.grad / norm)
        assert len(self.backup) == 1, "the recipe found no table, or two"

    def restore(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.backup:
                parameter.data = self.backup[name]
        self.backup = {}


def fgm_table(model: Classifier, batch: Batch, *, epsilon: float) -> Gradients:
    model = copy.deepcopy(model)
    model.zero_grad()
    recipe = TableFGM(model)
    loss_of(model, batch).backward()
    recipe.attack(epsilon)
    loss_of(model, batch).backward()  # adds up
    recipe.restore()
    return gradients(model)


def fgm(
    model: Classifier, batch: Batch, *, epsilon: float, scope: Shape, noise: Tensor | None = None
) -> Gradients:
    """FGM per text or per token; `noise` stands in both passes ("neftune+fgm")."""
    clean, gradient = gradients_at(model, batch, noise)
    shift = epsilon * direction(gradient, batch, scope)
    attacked, _ = gradients_at(model, batch, shift if noise is None else noise + shift)
    return added(clean, attacked)


# -- pgd ----------------------------------------------------------------------------------------


class TablePGD:
    """The pasted recipe, with the backup of *all* gradients."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.table_backup: dict[str, Tensor] = {}
        self.grad_backup: dict[str, Tensor] = {}

    def attack(self, epsilon: float, step_size: float, *, first: bool) -> None:
        for name, parameter in self.model.named_parameters():
            if "word_embeddings" in name:
                assert parameter.grad is not None
                if first:
                    self.table_backup[name] = parameter.data.clone()
                norm = torch.norm(parameter.grad)
                if norm != 0 and torch.isfinite(norm):
                    parameter.data.add_(step_size * parameter.grad / norm)
                    moved = parameter.data - self.table_backup[name]
                    if torch.norm(moved) > epsilon:
                        moved = epsilon * moved / torch.norm(moved)
                    parameter.data = self.table_backup[name] + moved

    def restore(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.table_backup:
                parameter.data = self.table_backup[name]
        self.table_backup = {}

    def backup_grad(self) -> None:
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self.grad_backup[name] = parameter.grad.clone()

    def restore_grad(self) -> None:
        for name, parameter in self.model.named_parameters():
            if name in self.grad_backup:
                parameter.grad = self.grad_backup[name].clone()


def pgd_table(
    model: Classifier, batch: Batch, *, epsilon: float, step_size: float, steps: int
) -> Gradients:
    model = copy.deepcopy(model)
    model.zero_grad()
    recipe = TablePGD(model)
    loss_of(model, batch).backward()
    recipe.backup_grad()
    for t in range(steps):
        recipe.attack(epsilon, step_size, first=t == 0)
        if t < steps - 1:
            model.zero_grad()
        else:
            recipe.restore_grad()  # the last backward adds to the clean gradient
        loss_of(model, batch).backward()
    recipe.restore()
    return gradients(model)


def pgd(
    model: Classifier, batch: Batch, *, epsilon: float, step_size: float, steps: int, scope: Shape
) -> Gradients:
    clean, gradient = gradients_at(model, batch, None)
    shift = torch.zeros_like(gradient)
    last = clean
    for _ in range(steps):
        shift = shift + step_size * direction(gradient, batch, scope)
        shift = inside_ball(shift, epsilon, batch, scope)
        last, gradient = gradients_at(model, batch, shift)
    return added(clean, last)


# -- freelb -------------------------------------------------------------------------------------


def freelb(
    model: Classifier,
    batch: Batch,
    generator: torch.Generator,
    *,
    steps: int,
    step_size: float,
    init: float,
    max_norm: float = 0.0,
    norm: str = "l2",
    passes: str = "steps",
) -> Gradients:
    """Average dL(E + r_t) over the path; one draw from the generator, whatever `init` is."""
    rows, padded = batch.input_ids.shape
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[union-attr]
    shift = torch.empty(rows, padded, width, dtype=torch.float64)
    shift.uniform_(-1, 1, generator=generator)
    for i, n in enumerate(true_lengths(batch)):
        shift[i, :n] *= init if norm == "linf" else init / math.sqrt(n * width)
        shift[i, n:] = 0
    path = []
    count = steps + 1 if passes == "steps+1" else steps
    for _ in range(count):
        found, gradient = gradients_at(model, batch, shift)
        path.append(found)
        shift = shift + step_size * direction(gradient, batch, "example", norm)
        if max_norm > 0 and norm == "l2":
            shift = inside_ball(shift, max_norm, batch, "example")
        elif max_norm > 0:
            for i in range(rows):
                shift[i] = shift[i].clamp(min=-max_norm, max=max_norm)
    return added(*path, weight=1 / count)
