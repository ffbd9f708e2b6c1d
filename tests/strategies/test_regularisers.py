"""Shifts of the embeddings that regularise: fgsm, fgm's objectives, vat, alum, smart, r3f.

Each gradient is held against a second implementation, written from the formula: plain autograd on
the output of the word embeddings, which a wrapper module shifts. It shares with the package the
model, autograd and the random numbers, nothing else. Float64, dropout 0 unless said.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable, Generator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from competition_kit.data.encoding import Batch, Encoded
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.smart import SMART
from competition_kit.training.divergence import detached_kl, kl, stable_kl, symmetric_kl
from competition_kit.training.fit import fit_fold
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import BinaryCrossEntropy, CrossEntropy, Once, RDrop
from competition_kit.training.recipe import Recipe
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.step import Objective, Step

EXACT = 1e-10  # relative error of a gradient between two ways to compute it in float64
SEED = 5
Gradients = dict[str, Tensor]


# -- what both sides are run on -----------------------------------------------------------------


def set_dropout(model: nn.Module, p: float) -> None:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = p


def toy(folder: Path, *, classes: int = 3, dropout: float = 0.0) -> Classifier:
    """Return a float64 classifier whose matrices are drawn with more spread than BERT's 0.02.

    Otherwise it is nearly linear, and a wrong shift would hardly show in the gradient.
    """
    model = build_classifier(folder, classes, dropout=dropout).double()
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.normal_(std=0.3, generator=generator)
    set_dropout(model, dropout)
    return model.train()


@pytest.fixture(params=["bert", "roberta"])
def model(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Classifier:
    return toy(model_folder(request.param))


@pytest.fixture
def bert(model_folder: Callable[[str], Path]) -> Classifier:
    return toy(model_folder("bert"))


def make_batch(model: nn.Module, *, multi_label: bool = False, seed: int = 0) -> Batch:
    """Return four texts of few distinct tokens, two positions padded in the longest."""
    padding = model.get_input_embeddings().padding_idx or 0  # type: ignore[operator]
    lengths = (9, 4, 6, 2)
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((len(lengths), 11), padding)
    for row, length in enumerate(lengths):
        ids[row, :length] = torch.randint(5, 12, (length,), generator=generator)
    mask = (torch.arange(11) < torch.tensor(lengths)[:, None]).long()
    shape = (len(lengths), 3) if multi_label else (len(lengths),)
    labels = torch.randint(0, 2 if multi_label else 3, shape, generator=generator)
    distinct, slots = ids.unique(return_inverse=True)
    return Batch(ids, mask, None, labels, slots, len(distinct))


class Watching(Step):
    """A step that keeps the logits and the shift of every pass."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.seen: list[Tensor] = []
        self.shifts: list[Tensor] = []

    def logits(self, shift: Tensor | None = None, draw: int = 0) -> Tensor:
        logits = super().logits(shift, draw)
        self.shifts.append(self.new_shift() if shift is None else shift.detach().clone())
        self.seen.append(logits.detach().clone())
        return logits

    def slow_logits(self, *args: Any) -> Tensor:
        logits = super().slow_logits(*args)
        self.seen.append(logits.detach().clone())
        return logits


def objective_of(batch: Batch) -> Objective:
    assert batch.labels is not None
    return Once(CrossEntropy() if batch.labels.ndim == 1 else BinaryCrossEntropy())


def step_of(
    model: nn.Module, batch: Batch, objective: Objective | None = None, **settings: Any
) -> Watching:
    generator = torch.Generator().manual_seed(SEED)
    return Watching(model, batch, objective or objective_of(batch), generator, **settings)


def drive(losses: Generator[Tensor, None, None], weight: float = 1.0) -> int:
    """Do what `fit_fold` does with a strategy's losses; return how many there were."""
    count = 0
    with closing(losses):
        for loss in losses:
            (loss * weight).backward()
            count += 1
    return count


def gradients_of(model: nn.Module) -> Gradients:
    return {
        name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
        for name, p in model.named_parameters()
    }


def trained(strategy: Strategy | str, model: nn.Module, batch: Batch, **settings: Any) -> Gradients:
    """Return every parameter's gradient after one step."""
    if isinstance(strategy, str):
        strategy = parse_spec(strategy, STRATEGIES)
    model.zero_grad()
    drive(strategy(step_of(model, batch, **settings)))
    return gradients_of(model)


def relative_error(got: Gradients, want: Gradients) -> float:
    """Return the largest error of a parameter's gradient, relative to its norm.

    A gradient that should vanish (a key's bias, an unused row) is held against the largest norm.
    """
    assert got.keys() == want.keys()
    largest = max(float(g.norm()) for g in want.values())
    assert largest > 0, "a test on vanishing gradients shows nothing"
    return max(
        float((got[name] - right).norm())
        / (float(right.norm()) if right.norm() > 1e-9 * largest else largest)
        for name, right in want.items()
    )


def identical(one: Gradients, other: Gradients) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# -- the second implementation ------------------------------------------------------------------


class Shifted(nn.Module):
    """An embedding that adds a tensor to its output."""

    def __init__(self, inner: nn.Module, shift: Tensor) -> None:
        super().__init__()
        self.inner = inner
        self.shift = shift

    def forward(self, ids: Tensor) -> Tensor:
        return self.inner(ids) + self.shift


def zeros(model: Classifier, batch: Batch) -> Tensor:
    width = model.get_input_embeddings().weight.shape[1]  # type: ignore[union-attr]
    return torch.zeros(*batch.input_ids.shape, width, dtype=torch.float64)  # type: ignore[arg-type]


def logits_at(model: Classifier, batch: Batch, shift: Tensor | None = None) -> Tensor:
    """Return the logits with a tensor added to the word embeddings."""
    table = model.get_input_embeddings()
    added = zeros(model, batch) if shift is None else shift
    model.encoder.set_input_embeddings(Shifted(table, added))  # type: ignore[operator]
    try:
        return model(batch.input_ids, batch.attention_mask, batch.type_ids)
    finally:
        model.encoder.set_input_embeddings(table)  # type: ignore[operator]


def loss_at(model: Classifier, batch: Batch, shift: Tensor | None = None) -> Tensor:
    logits = logits_at(model, batch, shift)
    y = batch.labels
    assert y is not None
    if y.ndim == 1:
        return (logits.logsumexp(dim=1) - logits[torch.arange(len(y)), y]).mean()
    p = 1 / (1 + torch.exp(-logits))
    return -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()


def distance(p_logits: Tensor, q_logits: Tensor, multi_label: bool) -> Tensor:
    """Return KL(p || q), the mean over texts: from probabilities, not from log-softmax."""
    if multi_label:
        p, q = (1 / (1 + torch.exp(-x)) for x in (p_logits, q_logits))
        each = p * torch.log(p / q) + (1 - p) * torch.log((1 - p) / (1 - q))
    else:
        p, q = (torch.exp(x) / torch.exp(x).sum(1, keepdim=True) for x in (p_logits, q_logits))
        each = p * torch.log(p / q)
    return each.sum() / len(p)


def both_ways(p_logits: Tensor, q_logits: Tensor, multi_label: bool) -> Tensor:
    return distance(p_logits, q_logits, multi_label) + distance(q_logits, p_logits, multi_label)


def uphill(shift: Tensor, value: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the gradient of a function of the shift."""
    leaf = shift.clone().requires_grad_()
    return torch.autograd.grad(value(leaf), leaf)[0]


def weight_gradients(model: Classifier, loss: Tensor) -> Gradients:
    names, weights = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, weights, allow_unused=True)
    return {
        name: torch.zeros_like(w) if g is None else g
        for name, w, g in zip(names, weights, found, strict=True)
    }


def lengths_of(batch: Batch) -> list[int]:
    return [int(row.sum()) for row in batch.attention_mask]


def noise(model: Classifier, batch: Batch, kind: str) -> Tensor:
    """Return the draw that a strategy makes first, zero on padding."""
    generator = torch.Generator().manual_seed(SEED)
    draw = zeros(model, batch)
    if kind == "uniform":
        draw.uniform_(-1, 1, generator=generator)
    else:
        draw.normal_(generator=generator)
    for row, length in enumerate(lengths_of(batch)):
        draw[row, length:] = 0
    return draw


def per_text(shift: Tensor, size: Callable[[Tensor], Tensor]) -> Tensor:
    return torch.stack([row / size(row) for row in shift])


def reference_fgsm(model: Classifier, batch: Batch, epsilon: float) -> Tensor:
    gradient = uphill(zeros(model, batch), lambda r: loss_at(model, batch, r))
    out = zeros(model, batch)
    for row, length in enumerate(lengths_of(batch)):
        for t in range(length):
            g = gradient[row, t]
            out[row, t] = epsilon * ((g > 0).double() - (g < 0).double())
    return out


def reference_fgm(model: Classifier, batch: Batch, epsilon: float, scope: str) -> Tensor:
    if scope == "table":
        table = model.get_input_embeddings().weight
        (gradient,) = torch.autograd.grad(loss_at(model, batch), table)  # type: ignore[arg-type]
        return (epsilon * gradient / gradient.norm())[batch.input_ids]
    gradient = uphill(zeros(model, batch), lambda r: loss_at(model, batch, r))
    if scope == "example":
        return per_text(gradient, torch.norm) * epsilon
    out = zeros(model, batch)
    for row, length in enumerate(lengths_of(batch)):
        out[row, :length] = epsilon * per_text(gradient[row, :length], torch.norm)
    return out


def reference_vat(
    model: Classifier, batch: Batch, alpha: float, epsilon: float, xi: float, steps: int
) -> Tensor:
    """Return the loss; its clean side is a constant."""
    multi_label = batch.labels is not None and batch.labels.ndim == 2
    clean = logits_at(model, batch).detach()
    d = per_text(noise(model, batch, "normal"), torch.norm)
    for _ in range(steps):
        g = uphill(xi * d, lambda r: distance(clean, logits_at(model, batch, r), multi_label))
        d = per_text(g, torch.norm)
    moved = logits_at(model, batch, epsilon * d)
    return loss_at(model, batch) + alpha * distance(clean, moved, multi_label)


def reference_smooth_shift(
    model: Classifier, batch: Batch, climb: Callable[[Tensor], Tensor], settings: dict[str, Any]
) -> Tensor:
    """Return the shift of alum and smart: the paper's, or that of the authors' code."""
    r = settings["sigma"] * noise(model, batch, "normal")
    for _ in range(settings["steps"]):
        g = uphill(r, climb)
        if settings["variant"] == "paper":
            r = r + settings["step_size"] * per_text(g, lambda x: x.abs().max())
            r = r.clamp(-settings["epsilon"], settings["epsilon"])
            continue
        r = r + settings["step_size"] * g
        for row, length in enumerate(lengths_of(batch)):
            for t in range(length):
                r[row, t] = r[row, t] / (r[row, t].abs().max() + 1e-6)
    return r


def reference_alum(model: Classifier, batch: Batch, alpha: float, settings: dict[str, Any]) -> Any:
    multi_label = batch.labels is not None and batch.labels.ndim == 2
    fixed = logits_at(model, batch).detach()
    measure = both_ways if settings["variant"] == "paper" else distance
    r = reference_smooth_shift(
        model,
        batch,
        lambda shift: measure(fixed, logits_at(model, batch, shift), multi_label),
        settings,
    )
    clean = logits_at(model, batch)
    term = both_ways(clean, logits_at(model, batch, r), multi_label)
    return loss_at(model, batch) + alpha * term, r


def reference_stable(moved: Tensor, fixed: Tensor) -> Tensor:
    """Sum over texts of 2 p (log-odds p - log-odds q), with guards of 1e-6, log-odds constant."""
    p, q = (torch.exp(x) / torch.exp(x).sum(1, keepdim=True) for x in (moved, fixed))
    odds = [-torch.log(1 / (x.detach() + 1e-6) - 1 + 1e-6) for x in (p, q)]
    return (2 * p * (odds[0] - odds[1])).sum()


def reference_smart(
    model: Classifier, batch: Batch, alpha: float, settings: dict[str, Any]
) -> Tensor:
    fixed = logits_at(model, batch).detach()

    def climb(shift: Tensor) -> Tensor:
        moved = logits_at(model, batch, shift)
        if settings["variant"] == "paper":
            return both_ways(fixed, moved, False)
        return reference_stable(moved, fixed)

    r = reference_smooth_shift(model, batch, climb, settings)
    clean, moved = logits_at(model, batch), logits_at(model, batch, r)
    if settings["variant"] == "paper":
        term = both_ways(clean, moved, False)
    else:
        term = distance(clean.detach(), moved, False) + distance(moved.detach(), clean, False)
    return loss_at(model, batch) + alpha * term


# -- one-step attacks ---------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("objective", ["sum", "mean", "adv_only"])
def test_fgsm_gradient(objective: str, multi_label: bool, model: Classifier) -> None:
    batch = make_batch(model, multi_label=multi_label)
    attacked = loss_at(model, batch, reference_fgsm(model, batch, 0.05))
    clean = loss_at(model, batch)
    loss = {"sum": clean + attacked, "mean": (clean + attacked) / 2, "adv_only": attacked}
    want = weight_gradients(model, loss[objective])
    got = trained(f"fgsm(epsilon=0.05, objective={objective})", model, batch)
    assert relative_error(got, want) <= EXACT


@pytest.mark.parametrize("scope", ["table", "example", "token"])
@pytest.mark.parametrize("objective", ["sum", "mean", "adv_only"])
def test_fgm_gradient_of_each_objective(objective: str, scope: str, model: Classifier) -> None:
    """The shift is a constant: no second derivative, in any objective."""
    batch = make_batch(model)
    attacked = loss_at(model, batch, reference_fgm(model, batch, 0.6, scope))
    clean = loss_at(model, batch)
    loss = {"sum": clean + attacked, "mean": (clean + attacked) / 2, "adv_only": attacked}
    want = weight_gradients(model, loss[objective])
    got = trained(f"fgm(epsilon=0.6, scope={scope}, objective={objective})", model, batch)
    assert relative_error(got, want) <= EXACT


def test_fgsm_moves_every_element_of_a_text_by_epsilon_and_no_padding(model: Classifier) -> None:
    batch = make_batch(model)
    step = step_of(model, batch)
    drive(parse_spec("fgsm(epsilon=0.05)", STRATEGIES)(step))
    for row, length in enumerate(lengths_of(batch)):
        assert (step.shifts[-1][row, :length].abs() == 0.05).all()
        assert not step.shifts[-1][row, length:].any()


# -- vat ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("multi_label", [False, True])
def test_vat_gradient(steps: int, multi_label: bool, model: Classifier) -> None:
    batch = make_batch(model, multi_label=multi_label)
    want = weight_gradients(model, reference_vat(model, batch, 1.5, 0.8, 0.1, steps))
    got = trained(f"vat(alpha=1.5, epsilon=0.8, xi=0.1, steps={steps})", model, batch)
    assert relative_error(got, want) <= EXACT


def test_vat_has_no_gradient_through_the_clean_side(bert: Classifier) -> None:
    """With the clean side open the reference gives something else: the comparison would notice."""
    batch = make_batch(bert)
    step = step_of(bert, batch)
    got = trained("vat(alpha=1.5, epsilon=0.8)", bert, batch)
    drive(parse_spec("vat(alpha=1.5, epsilon=0.8)", STRATEGIES)(step))
    moved = logits_at(bert, batch, step.shifts[-1])
    opened = loss_at(bert, batch) + 1.5 * distance(logits_at(bert, batch), moved, False)
    assert relative_error(got, weight_gradients(bert, opened)) > 1e-3


class Logistic(nn.Module):
    """Logit f_i = w . (mean of a text's embeddings); the table holds zeros."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.table = nn.Embedding(12, 8, dtype=torch.float64)
        self.w = nn.Parameter(torch.randn(8, dtype=torch.float64, generator=generator))
        nn.init.normal_(self.table.weight, generator=generator)

    def get_input_embeddings(self) -> nn.Module:
        return self.table

    def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
        mean = (self.table(ids) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)
        return (mean @ self.w).unsqueeze(1)


def test_vat_turns_along_the_weight_of_a_logistic_model() -> None:
    """T18: the divergence depends on the shift through w . r only, so its gradient is along w.

    After one power iteration each token's shift is parallel to w, and as all n tokens enter the
    mean alike, a text's shift has norm epsilon with epsilon / sqrt(n) at each token.
    """
    model = Logistic()
    batch = make_batch(model, multi_label=True)
    batch = Batch(
        batch.input_ids,
        batch.attention_mask,
        None,
        batch.labels[:, :1],  # type: ignore[index]
        batch.slots,
        batch.distinct,
    )
    step = step_of(model, batch)
    drive(parse_spec("vat(xi=0.001, epsilon=0.8)", STRATEGIES)(step))
    unit = model.w.detach() / model.w.detach().norm()
    for row, length in enumerate(lengths_of(batch)):
        shift = step.shifts[-1][row, :length]
        along = shift @ unit
        assert (along.abs() / shift.norm(dim=1) > 1 - 1e-6).all()
        assert torch.allclose(along.abs(), torch.tensor(0.8 / math.sqrt(length)).double())
        assert not step.shifts[-1][row, length:].any()


# -- alum and smart -----------------------------------------------------------------------------

SMOOTH: dict[str, dict[str, Any]] = {
    "paper": {"variant": "paper", "sigma": 0.02, "step_size": 0.03, "epsilon": 0.04, "steps": 1},
    "paper, free": {
        "variant": "paper",
        "sigma": 0.02,
        "step_size": 0.03,
        "epsilon": 9.0,
        "steps": 2,
    },
    "reference": {
        "variant": "reference",
        "sigma": 0.01,
        "step_size": 1.0,
        "epsilon": 0.001,
        "steps": 1,
    },
    "reference, twice": {
        "variant": "reference",
        "sigma": 0.01,
        "step_size": 1.0,
        "epsilon": 0.001,
        "steps": 2,
    },
}


def spec_of(name: str, settings: dict[str, Any], **more: Any) -> str:
    arguments = ", ".join(f"{key}={value}" for key, value in {**settings, **more}.items())
    return f"{name}({arguments})"


@pytest.mark.parametrize("form", SMOOTH)
@pytest.mark.parametrize("multi_label", [False, True])
def test_alum_gradient(form: str, multi_label: bool, model: Classifier) -> None:
    batch = make_batch(model, multi_label=multi_label)
    loss, _ = reference_alum(model, batch, 1.5, SMOOTH[form])
    got = trained(spec_of("alum", SMOOTH[form], alpha=1.5), model, batch)
    assert relative_error(got, weight_gradients(model, loss)) <= EXACT


@pytest.mark.parametrize("form", SMOOTH)
def test_smart_gradient(form: str, model: Classifier) -> None:
    batch = make_batch(model)
    want = weight_gradients(model, reference_smart(model, batch, 1.5, SMOOTH[form]))
    got = trained(spec_of("smart", SMOOTH[form], alpha=1.5, mu=0.0), model, batch)
    assert relative_error(got, want) <= EXACT


@pytest.mark.parametrize("name", ["alum", "smart"])
def test_the_paper_ball_holds_elementwise_and_is_reached(name: str, bert: Classifier) -> None:
    """T16: clipping to epsilon < step_size puts the steepest element exactly on the border."""
    batch = make_batch(bert)
    step = step_of(bert, batch)
    drive(parse_spec(spec_of(name, SMOOTH["paper"]), STRATEGIES)(step))
    for row, length in enumerate(lengths_of(batch)):
        assert step.shifts[-1][row].abs().max() <= 0.04
        assert step.shifts[-1][row, :length].abs().max() > 0.01
        assert not step.shifts[-1][row, length:].any()


@pytest.mark.parametrize("name", ["alum", "smart"])
def test_the_reference_shift_has_largest_element_one_at_each_token(
    name: str, bert: Classifier
) -> None:
    """T16: m / (m + 1e-6), whatever epsilon is; m is the largest element before scaling."""
    batch = make_batch(bert)
    step = step_of(bert, batch)
    drive(
        parse_spec(
            spec_of(name, SMOOTH["reference"], mu=0.0)
            if name == "smart"
            else spec_of(name, SMOOTH["reference"]),
            STRATEGIES,
        )(step)
    )
    for row, length in enumerate(lengths_of(batch)):
        peaks = step.shifts[-1][row].abs().amax(dim=1)
        assert (peaks[:length] < 1).all()
        assert (peaks[:length] > 1 - 1e-3).all()
        assert not peaks[length:].any()


@pytest.mark.parametrize("name", ["alum", "smart"])
@pytest.mark.parametrize("form", ["paper", "reference"])
def test_the_direction_cosine_is_that_of_the_first_and_the_last_shift(
    name: str, form: str, bert: Classifier
) -> None:
    batch = make_batch(bert)
    step = step_of(bert, batch)
    drive(parse_spec(spec_of(name, SMOOTH[form]), STRATEGIES)(step))
    first = noise(bert, batch, "normal").flatten(1)
    last = step.shifts[-1].flatten(1)
    want = nn.functional.cosine_similarity(first, last, dim=1).mean()
    assert step.notes["direction_cosine"].item() == pytest.approx(want.item(), rel=1e-9)
    assert -1 <= want < 0.99


def test_an_ascent_without_a_step_is_idle(bert: Classifier) -> None:
    step = step_of(bert, make_batch(bert))
    drive(parse_spec("alum(step_size=0.0, sigma=0.001, epsilon=1.0)", STRATEGIES)(step))
    assert step.notes["direction_cosine"].item() == pytest.approx(1.0, abs=1e-12)


# -- divergences --------------------------------------------------------------------------------


def random_logits(seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(5, 4, dtype=torch.float64, generator=generator) * 2


@pytest.mark.parametrize("multi_label", [False, True])
def test_divergences_are_their_formulas(multi_label: bool) -> None:
    """T16: kl = sum p log(p / q); symmetric = sum (p - q)(log p - log q), also when detached."""
    a, b = random_logits(1), random_logits(2)
    if multi_label:
        p, q = (torch.stack([x.sigmoid(), 1 - x.sigmoid()], dim=-1) for x in (a, b))
    else:
        p, q = a.softmax(1).unsqueeze(-1), b.softmax(1).unsqueeze(-1)
    one_way = (p * torch.log(p / q)).sum(dim=(1, 2))
    symmetric = ((p - q) * (p.log() - q.log())).sum(dim=(1, 2))
    torch.testing.assert_close(kl(a, b, multi_label), one_way)
    torch.testing.assert_close(symmetric_kl(a, b, multi_label), symmetric)
    torch.testing.assert_close(detached_kl(a, b, multi_label), symmetric)
    assert (one_way > 0).all() and kl(a, a, multi_label).abs().max() < 1e-15


@pytest.mark.parametrize("multi_label", [False, True])
def test_divergences_have_the_gradients_of_finite_differences(multi_label: bool) -> None:
    a, b = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    for divergence in (kl, symmetric_kl):
        assert torch.autograd.gradcheck(lambda x, y, d=divergence: d(x, y, multi_label), (a, b))


def test_the_detached_divergence_has_half_of_the_structure() -> None:
    """T17: with a constant target, d KL(q || p) / d logits of p = p - q, for either side.

    And of KL(p || q) with q constant: p (log p/q - KL). Both vanish where p = q.
    """
    a, b = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    p, q = a.detach().softmax(1), b.detach().softmax(1)
    to_a, to_b = torch.autograd.grad(detached_kl(a, b).sum(), (a, b))
    torch.testing.assert_close(to_a, p - q)
    torch.testing.assert_close(to_b, q - p)
    (other,) = torch.autograd.grad(kl(a, b.detach()).sum(), a)
    per_row = (p * (p / q).log()).sum(1, keepdim=True)
    torch.testing.assert_close(other, p * ((p / q).log() - per_row))
    for divergence in (kl, symmetric_kl, detached_kl):
        same = torch.autograd.grad(divergence(a, a.detach()).sum(), a)[0]
        assert same.abs().max() < 1e-15


def test_stable_kl_is_the_formula_of_the_reference_code() -> None:
    """Its gradient sees p only: 2 p_j (k_j - sum_c p_c k_c), k the difference of log-odds.

    It is not the KL divergence, in value or gradient.
    """
    a, b = random_logits(1).requires_grad_(), random_logits(2).requires_grad_()
    p, q = a.detach().softmax(1), b.detach().softmax(1)
    k = torch.zeros_like(p)
    for row, column in np.ndindex(*p.shape):
        odds = [-math.log(1 / (float(x[row, column]) + 1e-6) - 1 + 1e-6) for x in (p, q)]
        k[row, column] = odds[0] - odds[1]
    value = stable_kl(a, b)
    torch.testing.assert_close(value.detach(), (2 * p * k).sum(1))
    to_a, to_b = torch.autograd.grad(value.sum(), (a, b), allow_unused=True)
    torch.testing.assert_close(to_a, 2 * p * (k - (p * k).sum(1, keepdim=True)))
    assert to_b is None or not to_b.any()
    assert (value.detach() - kl(a, b).detach()).abs().max() > 0.1


# -- smart's proximal term ----------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_proximal_term_pulls_towards_the_slow_weights(alpha: float, model: Classifier) -> None:
    """Four optimizer steps of two micro-batches, with weights moved by hand in between.

    The slow weights start as the weights, move once for each optimizer step, before its first
    micro-batch: by 1 - beta_early while less than a tenth of training is done, then by 1 - beta.
    """
    settings = {**SMOOTH["paper"], "alpha": alpha, "mu": 2.0, "beta_early": 0.5, "beta": 0.8}
    strategy = SMART(**settings)  # type: ignore[arg-type]
    memory: dict[str, Any] = {}
    slow = copy.deepcopy(model)
    random = torch.Generator().manual_seed(1)
    for number in range(4):
        progress = number / 20  # a tenth is behind at number 2
        if number > 0:
            beta = 0.5 if number < 2 else 0.8
            with torch.no_grad():
                for old, new in zip(slow.parameters(), model.parameters(), strict=True):
                    old.copy_(beta * old + (1 - beta) * new)
        for micro in range(2):
            batch = make_batch(model, seed=10 * number + micro)
            target = logits_at(slow, batch).detach()
            loss = (
                reference_smart(model, batch, alpha, SMOOTH["paper"])
                if alpha
                else loss_at(model, batch)
            )
            loss = loss + 2.0 * both_ways(logits_at(model, batch), target, False)
            want = weight_gradients(model, loss)
            got = trained(strategy, model, batch, memory=memory, number=number, progress=progress)
            assert relative_error(got, want) <= EXACT, (number, micro)
        with torch.no_grad():
            for weight in model.parameters():
                weight.add_(torch.randn(weight.shape, generator=random).double(), alpha=0.05)


def test_the_proximal_term_alone_trains_a_fold(model_folder: Callable[[str], Path]) -> None:
    """It shifts no embedding; the check that a strategy did something must know it."""
    model = build_classifier(model_folder("bert"), 3)
    log = fit(model, "smart(alpha=0.0, mu=1.0, beta_early=0.5)")
    assert log.forwards == 2
    plain = build_classifier(model_folder("bert"), 3)
    fit(plain, "none")
    assert not identical(dict(model.state_dict()), dict(plain.state_dict()))


# -- r3f ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_r3f_gradient(kind: str, multi_label: bool, model: Classifier) -> None:
    batch = make_batch(model, multi_label=multi_label)
    shift = 0.05 * noise(model, batch, kind)
    term = both_ways(logits_at(model, batch), logits_at(model, batch, shift), multi_label)
    want = weight_gradients(model, loss_at(model, batch) + 1.5 * term)
    got = trained(f"r3f(alpha=1.5, epsilon=0.05, noise={kind})", model, batch)
    assert relative_error(got, want) <= EXACT


def test_the_r3f_term_is_of_second_order(bert: Classifier) -> None:
    """T20: KL_sym(noise s) / s^2 tends to a constant, so a tenth of s gives a hundredth."""
    batch = make_batch(bert)

    def term(epsilon: float) -> float:
        step = step_of(bert, batch)
        losses = parse_spec(f"r3f(alpha=1.0, epsilon={epsilon})", STRATEGIES)(step)
        return next(losses).item() - loss_at(bert, batch).item()

    assert term(1e-3) / term(1e-4) == pytest.approx(100, rel=0.01)
    assert term(1e-3) > 1e-9


# -- over all of them ---------------------------------------------------------------------------

# spec -> forwards, full backwards, input-only backwards, forwards without gradient, units
PASSES: dict[str, tuple[int, int, int, int, int]] = {
    "none": (1, 1, 0, 0, 3),
    "neftune": (1, 1, 0, 0, 3),
    "fgm": (2, 2, 0, 0, 6),
    "fgm(objective=mean)": (2, 2, 0, 0, 6),
    "fgm(objective=adv_only)": (2, 1, 1, 0, 5),
    "fgm(scope=example)": (2, 2, 0, 0, 6),
    "fgm(scope=token)": (2, 2, 0, 0, 6),
    "fgm(dropout=shared)": (2, 2, 0, 0, 6),
    "fgsm": (2, 2, 0, 0, 6),
    "fgsm(objective=mean)": (2, 2, 0, 0, 6),
    "fgsm(objective=adv_only)": (2, 1, 1, 0, 5),
    "fgsm(dropout=shared)": (2, 2, 0, 0, 6),
    "pgd(steps=3)": (4, 2, 2, 0, 10),
    "pgd(steps=3, dropout=shared)": (4, 2, 2, 0, 10),
    "freelb(steps=3)": (3, 3, 0, 0, 9),
    "freelb(steps=3, passes='steps+1')": (4, 4, 0, 0, 12),
    "freelb(steps=3, norm=linf)": (3, 3, 0, 0, 9),
    "freelb(steps=3, dropout=shared)": (3, 3, 0, 0, 9),
    "vat": (3, 2, 1, 0, 8),
    "vat(steps=2)": (4, 2, 2, 0, 10),
    "vat(dropout=shared)": (3, 2, 1, 0, 8),
    "alum": (3, 2, 1, 0, 8),
    "alum(steps=2)": (4, 2, 2, 0, 10),
    "alum(variant=reference)": (3, 2, 1, 0, 8),
    "alum(dropout=shared)": (3, 2, 1, 0, 8),
    "smart(mu=0)": (3, 2, 1, 0, 8),
    "smart": (4, 2, 1, 1, 9),
    "smart(variant=reference)": (4, 2, 1, 1, 9),
    "smart(dropout=shared)": (4, 2, 1, 1, 9),
    "smart(alpha=0)": (2, 1, 0, 1, 4),
    "r3f": (2, 2, 0, 0, 6),
    "r3f(noise=normal)": (2, 2, 0, 0, 6),
    "r3f(dropout=shared)": (2, 2, 0, 0, 6),
    "awp(start_epoch=0)": (2, 2, 0, 0, 6),
    "awp(start_epoch=0, kind=kaggle)": (2, 2, 0, 0, 6),
    "awp(start_epoch=0, kind=momentum)": (1, 1, 0, 0, 3),
    "awp(start_epoch=0, weights=linear)": (2, 2, 0, 0, 6),
    "awp(start_epoch=1)": (1, 1, 0, 0, 3),
    "sam": (2, 2, 0, 0, 6),
    "asam": (2, 2, 0, 0, 6),
    "neftune+awp(start_epoch=0)+fgm": (3, 3, 0, 0, 9),
}
CARDS = {
    "none": (3,),
    "neftune": (3,),
    "fgm": (6, 5),
    "fgsm": (6, 5),
    "pgd": (10,),
    "freelb": (9,),
    "vat": (8,),
    "alum": (8,),
    "smart": (8, 9),
    "r3f": (6,),
    "awp": (6, 3),
    "sam": (6,),
    "asam": (6,),
}  # units that the card names


def test_every_strategy_and_choice_has_its_passes_here() -> None:
    assert {name.partition("(")[0].partition("+")[0] for name in PASSES} == set(STRATEGIES)
    assert CARDS.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("spec", PASSES)
def test_passes_are_what_the_card_says(spec: str, bert: Classifier) -> None:
    """T32. Forwards and backwards are counted at the model too, by hooks on its output.

    A hook on the logits fires in every backward pass, one on the head's weight whenever a gradient
    of the weights is computed, so the two together tell full from input-only backwards.
    """
    forwards, full, input_only, without, units = PASSES[spec]
    calls = backwards = 0

    def backward(gradient: Tensor) -> None:
        nonlocal backwards
        backwards += 1

    def forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        nonlocal calls
        calls += 1
        if output.requires_grad:
            output.register_hook(backward)

    step = step_of(bert, make_batch(bert))
    with bert.register_forward_hook(forward):
        drive(parse_spec(spec, STRATEGIES)(step))
    assert (calls, backwards) == (forwards, full + input_only)
    assert (step.forwards, step.input_backwards, step.no_grad_forwards) == (
        forwards,
        input_only,
        without,
    )
    assert forwards + 2 * full + input_only == units


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_card_names_the_units_that_were_counted(name: str) -> None:
    card = inspect.getdoc(STRATEGIES[name]) or ""
    cost = card.partition("Cost:")[2].split("\nSane range:")[0]
    counted = {units for spec, (*_, units) in PASSES.items() if spec.startswith(name)}
    for units in CARDS[name]:
        assert units in counted
        assert re.search(rf"\b{units} units|: {units} at\s+K|\({units}\)", cost)


@pytest.mark.parametrize(
    "name", ["fgm", "fgsm", "vat", "alum", "smart", "r3f", "awp", "sam", "asam"]
)
def test_the_loss_scale_cancels(name: str, bert: Classifier) -> None:
    """T28: a loss scaled by 2^16, in inner passes too, gives the same gradient."""
    batch = make_batch(bert)
    spec = f"{name}(start_epoch=0)" if name == "awp" else name
    if name == "alum":
        spec = spec_of(name, SMOOTH["reference"])  # its ascent is not normalised
    want = trained(spec, bert, batch)
    bert.zero_grad()
    step = step_of(bert, batch, scale=lambda loss: loss * 2.0**16)
    drive(parse_spec(spec, STRATEGIES)(step), weight=2.0**16)
    got = {key: gradient / 2.0**16 for key, gradient in gradients_of(bert).items()}
    assert relative_error(got, want) <= 1e-12


@pytest.mark.parametrize(
    "spec",
    [
        "fgm(objective=adv_only)",
        "fgsm(objective=adv_only)",
        "vat",
        "alum",
        "smart",
        "alum(variant=reference)",
        "smart(variant=reference)",
        "awp(start_epoch=0)",
        "awp(start_epoch=0, kind=kaggle)",
        "sam",
        "asam",
    ],
)
def test_an_overflow_in_an_inner_pass_puts_no_nan_into_the_outer_one(
    spec: str, bert: Classifier
) -> None:
    """T28: with an infinite scale every inner gradient is inf or NaN; the outer loss is not scaled."""
    batch = make_batch(bert)
    got = trained(spec, bert, batch, scale=lambda loss: loss * torch.inf)
    assert all(torch.isfinite(gradient).all() for gradient in got.values())
    assert any(gradient.any() for gradient in got.values())


@pytest.mark.parametrize(
    "spec",
    [
        "vat(alpha=0.0)",
        "alum(alpha=0.0)",
        "smart(alpha=0.0, mu=0.0)",
        "r3f(alpha=0.0)",
        "fgm(objective=mean, epsilon=0.0, dropout=shared)",
        "fgsm(objective=mean, epsilon=0.0, dropout=shared)",
        "alum(epsilon=0.0, dropout=shared)",
        "r3f(epsilon=0.0, dropout=shared)",
    ],
)
def test_without_strength_training_is_the_baseline(
    spec: str, model_folder: Callable[[str], Path]
) -> None:
    """T29, dropout on: bit for bit where the extra term is weighted with zero.

    The others add a gradient of exact zeros in exact arithmetic: there to rounding.
    """
    strategy = parse_spec(spec, STRATEGIES)
    assert strategy.strength == 0
    model = toy(model_folder("bert"), dropout=0.3)
    batch = make_batch(model)

    def seeded(each: Any) -> Gradients:
        torch.manual_seed(3)
        return trained(each, model, batch)

    got, want = seeded(strategy), seeded("none")
    if "alpha=0.0" in spec:
        assert identical(got, want)
    assert relative_error(got, want) <= 1e-12


@pytest.mark.parametrize(
    "spec",
    [
        "fgm(epsilon=0.0)",
        "fgsm(epsilon=0.0)",
        "pgd(epsilon=0.0)",
        "vat(epsilon=0.0)",
        "freelb(step_size=0.0, init=0.0)",
        "alum(epsilon=0.0)",
        "r3f(epsilon=0.0)",
        "smart(epsilon=0.0, mu=0.0)",
        "fgm(epsilon=0.0, objective=adv_only)",
    ],
)
@pytest.mark.parametrize("rdrop", [False, True])
def test_shared_dropout_repeats_the_masks_of_the_first_pass(
    spec: str, rdrop: bool, model_folder: Callable[[str], Path]
) -> None:
    """T30: at strength 0 all passes at the clean point give the same logits, bit for bit.

    R-Drop's second draw has masks of its own, and repeats those. With fresh masks all differ.
    """
    model = toy(model_folder("bert"), dropout=0.5)
    batch = make_batch(model)
    objective = RDrop(CrossEntropy(), 1.0) if rdrop else Once(CrossEntropy())

    def clean_passes(kind: str) -> list[Tensor]:
        torch.manual_seed(0)
        step = step_of(model, batch, objective)
        drive(parse_spec(spec.replace(")", f", dropout={kind})"), STRATEGIES)(step))
        return [
            logits for logits, shift in zip(step.seen, step.shifts, strict=True) if not shift.any()
        ]

    shared, fresh = clean_passes("shared"), clean_passes("fresh")
    distinct = {tuple(logits.flatten().tolist()) for logits in shared}
    assert len(shared) >= (3 if rdrop else 2)
    assert len(distinct) == (2 if rdrop else 1)
    assert len({tuple(logits.flatten().tolist()) for logits in fresh}) == len(fresh)


def test_shared_dropout_reaches_the_pass_of_the_slow_weights(
    model_folder: Callable[[str], Path],
) -> None:
    """In the first step the slow weights are the weights: same masks, same logits."""
    model = toy(model_folder("bert"), dropout=0.5)
    step = step_of(model, make_batch(model))
    drive(SMART(alpha=0.0, dropout="shared")(step))
    clean, slow = step.seen
    assert torch.equal(clean, slow)


@pytest.mark.parametrize(
    "spec",
    [
        "fgsm",
        "fgsm(objective=adv_only)",
        "fgm(objective=adv_only)",
        "vat(steps=2)",
        "alum",
        "alum(variant=reference)",
        "smart",
        "smart(variant=reference)",
        "r3f",
        "r3f(noise=normal)",
    ],
)
def test_no_pass_shifts_padding(spec: str, model: Classifier) -> None:
    """Bit for bit, inner passes included; attention would hide it, but norms and pooling see it."""
    batch = make_batch(model)
    step = step_of(model, batch)
    drive(parse_spec(spec, STRATEGIES)(step))
    padding = batch.attention_mask == 0
    assert padding.any()
    assert not any(shift[padding].any() for shift in step.shifts)
    assert step.shifts[-1][~padding].any()


@pytest.mark.parametrize("spec", ["vat", "alum", "smart", "r3f", "fgsm", "fgm(objective=adv_only)"])
def test_the_gradient_does_not_depend_on_earlier_gradients(spec: str, bert: Classifier) -> None:
    """T27: under accumulation `.grad` holds earlier micro-batches; the shift must not see them."""
    batch = make_batch(bert)
    want = trained(spec, bert, batch)
    bert.zero_grad()
    for weight in bert.parameters():
        weight.grad = torch.full_like(weight, 3.0)
    drive(parse_spec(spec, STRATEGIES)(step_of(bert, batch)))
    got = {name: gradient - 3.0 for name, gradient in gradients_of(bert).items()}
    assert relative_error(got, want) <= 1e-9


def fit(model: Classifier, spec: str, **settings: Any) -> Any:
    generator = np.random.default_rng(0)
    lengths = generator.integers(3, 10, size=24)
    ids = np.concatenate([generator.integers(5, 24, size=n) for n in lengths]).astype(np.int32)
    encoded = Encoded(ids, None, np.cumsum([0, *lengths]), truncated=0, pad_id=0)
    return fit_fold(
        model,
        encoded,
        generator.integers(0, 3, size=24),
        np.arange(24),
        strategy=parse_spec(spec, STRATEGIES),
        objective=Once(CrossEntropy()),
        recipe=Recipe(epochs=1, lr=1e-3, batch_size=8),
        seeds=FoldSeeds(0, 0),
        **settings,
    )


@pytest.mark.parametrize("spec", ["alum", "smart", "alum(variant=reference)"])
def test_the_log_of_a_fold_carries_the_direction_cosine(
    spec: str, model_folder: Callable[[str], Path]
) -> None:
    log = fit(build_classifier(model_folder("bert"), 3), spec)
    cosines = [line.notes["direction_cosine"] for line in log.lines]
    assert len(cosines) == 3
    assert all(-1 <= cosine <= 1 + 1e-6 for cosine in cosines)


def test_a_shift_that_is_a_constant_has_no_second_derivative(bert: Classifier) -> None:
    """The reference with the shift left in the graph differs: the comparisons above would see it."""
    batch = make_batch(bert)
    leaf = zeros(bert, batch).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fast kernel has no second derivative
        (g,) = torch.autograd.grad(loss_at(bert, batch, leaf), leaf, create_graph=True)
        attacked = loss_at(bert, batch, 0.6 * per_text(g, torch.norm))
        opened = weight_gradients(bert, attacked)
    got = trained(FGM(epsilon=0.6, scope="example", objective="adv_only"), bert, batch)
    assert relative_error(got, opened) > 1e-3
