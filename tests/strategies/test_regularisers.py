"""Shifts of the embeddings that regularise: fgsm, fgm's objectives, vat, alum, smart, r3f.

Each gradient is held against that of `reference_regularisers`. Float64, dropout 0 unless said.
"""

from __future__ import annotations

import copy
import inspect
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.smart import SMART
from competition_kit.training.divergence import detached_kl, kl, stable_kl, symmetric_kl
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import CrossEntropy, Once, RDrop

from .reference_regularisers import (
    SMOOTH,
    both_ways,
    distance,
    logits_at,
    loss_at,
    noise,
    per_text,
    reference_alum,
    reference_fgm,
    reference_fgsm,
    reference_smart,
    reference_vat,
    spec_of,
    weight_gradients,
    zeros,
)
from .tools import (
    EXACT,
    Gradients,
    Linear,
    binary_batch,
    drive,
    fit,
    identical,
    padded_batch,
    relative_error,
    step_of,
    toy_classifier,
    trained,
    true_lengths,
)

# -- one-step attacks ---------------------------------------------------------------------------


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize("objective", ["sum", "mean", "adv_only"])
def test_fgsm_gradient(objective: str, multi_label: bool, model: Classifier) -> None:
    batch = padded_batch(model, multi_label=multi_label)
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
    batch = padded_batch(model)
    attacked = loss_at(model, batch, reference_fgm(model, batch, 0.6, scope))
    clean = loss_at(model, batch)
    loss = {"sum": clean + attacked, "mean": (clean + attacked) / 2, "adv_only": attacked}
    want = weight_gradients(model, loss[objective])
    got = trained(f"fgm(epsilon=0.6, scope={scope}, objective={objective})", model, batch)
    assert relative_error(got, want) <= EXACT


def test_fgsm_moves_every_element_of_a_text_by_epsilon_and_no_padding(model: Classifier) -> None:
    batch = padded_batch(model)
    step = step_of(model, batch)
    drive(parse_spec("fgsm(epsilon=0.05)", STRATEGIES)(step))
    for row, length in enumerate(true_lengths(batch)):
        assert (step.shifts[-1][row, :length].abs() == 0.05).all()
        assert not step.shifts[-1][row, length:].any()


# -- vat ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("multi_label", [False, True])
def test_vat_gradient(steps: int, multi_label: bool, model: Classifier) -> None:
    batch = padded_batch(model, multi_label=multi_label)
    want = weight_gradients(model, reference_vat(model, batch, 1.5, 0.8, 0.1, steps))
    got = trained(f"vat(alpha=1.5, epsilon=0.8, xi=0.1, steps={steps})", model, batch)
    assert relative_error(got, want) <= EXACT


def test_vat_has_no_gradient_through_the_clean_side(bert: Classifier) -> None:
    """With the clean side open the reference gives something else: the comparison would notice."""
    batch = padded_batch(bert)
    step = step_of(bert, batch)
    got = trained("vat(alpha=1.5, epsilon=0.8)", bert, batch)
    drive(parse_spec("vat(alpha=1.5, epsilon=0.8)", STRATEGIES)(step))
    moved = logits_at(bert, batch, step.shifts[-1])
    opened = loss_at(bert, batch) + 1.5 * distance(logits_at(bert, batch), moved, False)
    assert relative_error(got, weight_gradients(bert, opened)) > 1e-3


def test_vat_turns_along_the_weight_of_a_logistic_model() -> None:
    """T18: the divergence depends on the shift through w . r only, so its gradient is along w.

    After one power iteration each token's shift is parallel to w, and as all n tokens enter the
    mean alike, a text's shift has norm epsilon with epsilon / sqrt(n) at each token.
    """
    model = Linear()
    batch = binary_batch(model, extra=2)
    step = step_of(model, batch)
    drive(parse_spec("vat(xi=0.001, epsilon=0.8)", STRATEGIES)(step))
    unit = model.w.detach() / model.w.detach().norm()
    for row, length in enumerate(true_lengths(batch)):
        shift = step.shifts[-1][row, :length]
        along = shift @ unit
        assert (along.abs() / shift.norm(dim=1) > 1 - 1e-6).all()
        assert torch.allclose(along.abs(), torch.tensor(0.8 / math.sqrt(length)).double())
        assert not step.shifts[-1][row, length:].any()


# -- alum and smart -----------------------------------------------------------------------------


@pytest.mark.parametrize("form", SMOOTH)
@pytest.mark.parametrize("multi_label", [False, True])
def test_alum_gradient(form: str, multi_label: bool, model: Classifier) -> None:
    batch = padded_batch(model, multi_label=multi_label)
    loss, _ = reference_alum(model, batch, 1.5, SMOOTH[form])
    got = trained(spec_of("alum", SMOOTH[form], alpha=1.5), model, batch)
    assert relative_error(got, weight_gradients(model, loss)) <= EXACT


@pytest.mark.parametrize("form", SMOOTH)
def test_smart_gradient(form: str, model: Classifier) -> None:
    batch = padded_batch(model)
    want = weight_gradients(model, reference_smart(model, batch, 1.5, SMOOTH[form]))
    got = trained(spec_of("smart", SMOOTH[form], alpha=1.5, mu=0.0), model, batch)
    assert relative_error(got, want) <= EXACT


@pytest.mark.parametrize("name", ["alum", "smart"])
def test_the_paper_ball_holds_elementwise_and_is_reached(name: str, bert: Classifier) -> None:
    """T16: a step twice as long as epsilon, from little noise, ends on the border in its steepest
    element.
    """
    batch = padded_batch(bert)
    step = step_of(bert, batch)
    settings = {**SMOOTH["paper"], "sigma": 1e-3, "step_size": 0.08}
    drive(parse_spec(spec_of(name, settings), STRATEGIES)(step))
    for row, length in enumerate(true_lengths(batch)):
        assert step.shifts[-1][row, :length].abs().max() == pytest.approx(0.04)
        assert not step.shifts[-1][row, length:].any()


@pytest.mark.parametrize("name", ["alum", "smart"])
def test_the_reference_shift_has_largest_element_one_at_each_token(
    name: str, bert: Classifier
) -> None:
    """T16: m / (m + 1e-6), whatever epsilon is; m is the largest element before scaling."""
    batch = padded_batch(bert)
    step = step_of(bert, batch)
    drive(
        parse_spec(
            spec_of(name, SMOOTH["reference"], mu=0.0)
            if name == "smart"
            else spec_of(name, SMOOTH["reference"]),
            STRATEGIES,
        )(step)
    )
    for row, length in enumerate(true_lengths(batch)):
        peaks = step.shifts[-1][row].abs().amax(dim=1)
        assert (peaks[:length] < 1).all()
        assert (peaks[:length] > 1 - 1e-3).all()
        assert not peaks[length:].any()


@pytest.mark.parametrize("name", ["alum", "smart"])
@pytest.mark.parametrize("form", ["paper", "reference"])
def test_the_direction_cosine_is_that_of_the_first_and_the_last_shift(
    name: str, form: str, bert: Classifier
) -> None:
    batch = padded_batch(bert)
    step = step_of(bert, batch)
    drive(parse_spec(spec_of(name, SMOOTH[form]), STRATEGIES)(step))
    first = noise(bert, batch, "normal").flatten(1)
    last = step.shifts[-1].flatten(1)
    want = nn.functional.cosine_similarity(first, last, dim=1).mean()
    assert step.notes["direction_cosine"].item() == pytest.approx(want.item(), rel=1e-9)
    assert -1 <= want < 0.99


def test_an_ascent_without_a_step_is_idle(bert: Classifier) -> None:
    step = step_of(bert, padded_batch(bert))
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
            batch = padded_batch(model, seed=10 * number + micro)
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
    batch = padded_batch(model, multi_label=multi_label)
    shift = 0.05 * noise(model, batch, kind)
    term = both_ways(logits_at(model, batch), logits_at(model, batch, shift), multi_label)
    want = weight_gradients(model, loss_at(model, batch) + 1.5 * term)
    got = trained(f"r3f(alpha=1.5, epsilon=0.05, noise={kind})", model, batch)
    assert relative_error(got, want) <= EXACT


def test_the_r3f_term_is_of_second_order(bert: Classifier) -> None:
    """T20: KL_sym(noise s) / s^2 tends to a constant, so a tenth of s gives a hundredth."""
    batch = padded_batch(bert)

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
    "pgd(steps=1)": (2, 2, 0, 0, 6),
    "pgd(steps=3)": (4, 2, 2, 0, 10),
    "pgd(steps=5)": (6, 2, 4, 0, 14),
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
    "neftune+pgd(steps=3)": (4, 2, 2, 0, 10),
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


def test_every_strategy_has_its_passes_here() -> None:
    assert {name.partition("(")[0].partition("+")[0] for name in PASSES} == set(STRATEGIES)
    assert CARDS.keys() == STRATEGIES.keys()


@pytest.mark.parametrize("spec", PASSES)
def test_passes_are_what_the_card_says(
    spec: str, bert: Classifier, monkeypatch: pytest.MonkeyPatch
) -> None:
    """T32. Counted from outside too: forwards at the model, backwards where they reach its logits.

    A backward that `torch.autograd.grad` makes for something else than weights is an input-only one.
    """
    forwards, full, input_only, without, units = PASSES[spec]
    counted = {"forward": 0, "full": 0, "input": 0}
    running = "full"
    real_grad = torch.autograd.grad

    def grad(outputs: Any, inputs: Any, **settings: Any) -> Any:
        nonlocal running
        wanted = [inputs] if isinstance(inputs, Tensor) else inputs
        running = "full" if isinstance(wanted[0], nn.Parameter) else "input"
        try:
            return real_grad(outputs, inputs, **settings)
        finally:
            running = "full"

    def backward(gradient: Tensor) -> None:
        counted[running] += 1

    def forward(module: nn.Module, inputs: Any, output: Tensor) -> None:
        counted["forward"] += 1
        if output.requires_grad:
            output.register_hook(backward)

    monkeypatch.setattr(torch.autograd, "grad", grad)
    step = step_of(bert, padded_batch(bert))
    with bert.register_forward_hook(forward):
        drive(parse_spec(spec, STRATEGIES)(step))
    assert counted == {"forward": forwards, "full": full, "input": input_only}
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
    batch = padded_batch(bert)
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
    model = toy_classifier(model_folder("bert"), dropout=0.3)
    batch = padded_batch(model)

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
    model = toy_classifier(model_folder("bert"), dropout=0.5)
    batch = padded_batch(model)
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
    model = toy_classifier(model_folder("bert"), dropout=0.5)
    step = step_of(model, padded_batch(model))
    drive(SMART(alpha=0.0, dropout="shared")(step))
    clean, slow = step.seen
    assert torch.equal(clean, slow)


@pytest.mark.parametrize("spec", ["alum", "smart", "alum(variant=reference)"])
def test_the_log_of_a_fold_carries_the_direction_cosine(
    spec: str, model_folder: Callable[[str], Path]
) -> None:
    log = fit(build_classifier(model_folder("bert"), 3), spec, epochs=1)
    cosines = [line.notes["direction_cosine"] for line in log.lines]
    assert len(cosines) == 2
    assert all(-1 <= cosine <= 1 + 1e-6 for cosine in cosines)


def test_a_shift_that_is_a_constant_has_no_second_derivative(bert: Classifier) -> None:
    """The reference with the shift left in the graph differs: the comparisons above would see it."""
    batch = padded_batch(bert)
    leaf = zeros(bert, batch).requires_grad_()
    with sdpa_kernel(SDPBackend.MATH):  # the fast kernel has no second derivative
        (g,) = torch.autograd.grad(loss_at(bert, batch, leaf), leaf, create_graph=True)
        attacked = loss_at(bert, batch, 0.6 * per_text(g, torch.norm))
        opened = weight_gradients(bert, attacked)
    got = trained(FGM(epsilon=0.6, scope="example", objective="adv_only"), bert, batch)
    assert relative_error(got, opened) > 1e-3
