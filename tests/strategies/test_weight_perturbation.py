"""Strategies that train at moved weights: awp, sam, asam.

The second implementation copies the model, moves the copy's weights by the formula and takes the
gradient there. Float64, dropout 0.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Batch
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.strategies.awp import AWP
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.sam import ASAM, SAM
from competition_kit.training.fit import TrainingError
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.step import Step

from .reference_regularisers import loss_at, reference_fgm, weight_gradients
from .tools import (
    EXACT,
    Gradients,
    drive,
    fit,
    identical,
    padded_batch,
    relative_error,
    step_of,
    trained,
)

NOW: dict[str, Any] = {"start_epoch": 0.0}


# -- the second implementation ------------------------------------------------------------------


def chosen(model: nn.Module, which: str) -> list[str]:
    """Return the names of a set of weights, from the names that BERT and RoBERTa give them."""
    matrices = [name for name, p in model.named_parameters() if p.dim() > 1]
    if which == "linear":
        return [name for name in matrices if "embeddings" not in name]
    return matrices if which == "matrices" else [name for name, _ in model.named_parameters()]


def moved_copy(model: Classifier, offsets: Gradients) -> Classifier:
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, weight in other.named_parameters():
            if name in offsets:
                weight.add_(offsets[name])
    return other


def together(gradients: Gradients) -> float:
    return sum(float(g.square().sum()) for g in gradients.values()) ** 0.5


def awp_offsets(
    model: Classifier, gradients: Gradients, kind: str, which: str, **settings: float
) -> Gradients:
    offsets = {}
    weights = dict(model.named_parameters())
    for name in chosen(model, which):
        w, g = weights[name].detach(), gradients[name]
        if kind == "layer":
            offsets[name] = settings["gamma"] * w.norm() * g / g.norm() if g.any() else 0 * g
            continue
        v = settings["step_size"] * g / (g.norm() + 1e-6) * (w.norm() + 1e-6)
        limit = settings["epsilon"] * w.abs()
        offsets[name] = torch.maximum(torch.minimum(v, limit), -limit)
    return offsets


def sam_offsets(
    model: Classifier, gradients: Gradients, which: str, rho: float, eta: float | None
) -> Gradients:
    weights = dict(model.named_parameters())
    names = chosen(model, which)
    scales = {
        name: torch.ones_like(weights[name]) if eta is None else weights[name].detach().abs() + eta
        for name in names
    }
    length = together({name: scales[name] * gradients[name] for name in names})
    return {name: rho * scales[name] ** 2 * gradients[name] / length for name in names}


def clean_gradients(model: Classifier, batch: Batch) -> Gradients:
    return weight_gradients(model, loss_at(model, batch))


class Spying(Step):
    """A step that keeps the weights as each pass finds them."""

    def __init__(self, *args: Any, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.found: list[Gradients] = []

    def logits(self, shift: Tensor | None = None, draw: int = 0) -> Tensor:
        self.found.append({n: p.detach().clone() for n, p in self.model.named_parameters()})
        return super().logits(shift, draw)


def offsets_of(strategy: Strategy, model: Classifier, batch: Batch, **settings: Any) -> Gradients:
    """Return how far the last pass's weights stood from the model's."""
    step = Spying(model, batch, Once(CrossEntropy()), torch.Generator(), **settings)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    drive(strategy(step))
    return {name: step.found[-1][name] - before[name] for name in before}


# -- awp ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["linear", "matrices", "all"])
@pytest.mark.parametrize("kind", ["layer", "kaggle"])
def test_awp_gradient(kind: str, which: str, model: Classifier) -> None:
    """The gradient at w + v; the clean gradient has no part in it."""
    batch = padded_batch(model)
    settings = {"gamma": 0.1, "step_size": 0.5, "epsilon": 0.2}
    clean = clean_gradients(model, batch)
    other = moved_copy(model, awp_offsets(model, clean, kind, which, **settings))
    want = clean_gradients(other, batch)
    got = trained(AWP(kind=kind, weights=which, **settings, **NOW), model, batch)  # type: ignore[arg-type]
    assert relative_error(got, want) <= EXACT
    assert relative_error(got, clean) > 1e-2


def test_awp_momentum_moves_along_the_running_mean_before_the_forward(model: Classifier) -> None:
    """Weights without a mean yet stay; no pass is spent on a direction."""
    batch = padded_batch(model)
    generator = torch.Generator().manual_seed(2)
    means = {
        name: torch.randn(p.shape, dtype=p.dtype, generator=generator)
        for name, p in model.named_parameters()
        if "layer.0" not in name
    }
    names = {id(p): name for name, p in model.named_parameters()}
    known = {name: means.get(name, torch.zeros_like(p)) for name, p in model.named_parameters()}
    offsets = awp_offsets(model, known, "kaggle", "matrices", step_size=0.5, epsilon=0.2)
    want = clean_gradients(moved_copy(model, offsets), batch)
    strategy = AWP(kind="momentum", step_size=0.5, epsilon=0.2, **NOW)
    got = trained(strategy, model, batch, momentum=lambda w: means.get(names[id(w)]))
    assert relative_error(got, want) <= EXACT
    assert relative_error(got, clean_gradients(model, batch)) > 1e-2


def test_awp_layer_moves_each_tensor_by_gamma_of_its_norm(model: Classifier) -> None:
    batch = padded_batch(model)
    offsets = offsets_of(AWP(gamma=0.1, **NOW), model, batch)
    clean = clean_gradients(model, batch)
    for name, weight in model.named_parameters():
        share = float(offsets[name].norm() / weight.detach().norm().clamp_min(1e-300))
        moves = weight.dim() > 1 and bool(clean[name].any())
        assert share == pytest.approx(0.1 if moves else 0.0, rel=1e-9), name


def test_awp_kaggle_stays_inside_both_bounds_and_reaches_them(bert: Classifier) -> None:
    """T21: |v| <= epsilon |w| elementwise; before clamping ||v|| <= step_size (||w|| + 1e-6)."""
    batch = padded_batch(bert)
    weights = {name: p.detach() for name, p in bert.named_parameters()}
    tight = offsets_of(AWP(kind="kaggle", step_size=1.0, epsilon=0.01, **NOW), bert, batch)
    loose = offsets_of(AWP(kind="kaggle", step_size=0.01, epsilon=1e6, **NOW), bert, batch)
    on_border = 0
    for name in chosen(bert, "matrices"):
        w = weights[name]
        assert (tight[name].abs() <= 0.01 * w.abs() + 1e-15).all()
        on_border += int(torch.isclose(tight[name].abs(), 0.01 * w.abs(), rtol=1e-9, atol=0).sum())
        assert loose[name].norm() <= 0.01 * (w.norm() + 1e-6) + 1e-15
    assert on_border > 100
    assert loose["head.weight"].norm() == pytest.approx(
        float(0.01 * weights["head.weight"].norm()), rel=1e-3
    )


@pytest.mark.parametrize("kind", ["layer", "kaggle"])
@pytest.mark.parametrize("which", ["linear", "matrices", "all"])
def test_awp_moves_the_chosen_weights_and_no_other(
    which: str, kind: str, model: Classifier
) -> None:
    batch = padded_batch(model)
    offsets = offsets_of(AWP(kind=kind, weights=which, **NOW), model, batch)  # type: ignore[arg-type]
    clean = clean_gradients(model, batch)
    names = {name for name, offset in offsets.items() if offset.any()}
    weights = dict(model.named_parameters())
    want = {name for name in chosen(model, which) if clean[name].any() and weights[name].any()}
    assert names == want
    assert any("LayerNorm.weight" in name for name in names) == (which == "all")
    assert any("word_embeddings" in name for name in names) == (which != "linear")


@pytest.mark.parametrize("name", ["awp", "sam", "asam"])
def test_before_its_start_epoch_the_inner_strategy_trains_alone(
    name: str, bert: Classifier
) -> None:
    batch = padded_batch(bert)
    strategy = parse_spec(f"{name}(start_epoch=1.5)+fgm", STRATEGIES)
    inner = trained("fgm", bert, batch)
    assert identical(trained(strategy, bert, batch, epoch=1.49), inner)
    assert not identical(trained(strategy, bert, batch, epoch=1.5), inner)


def test_a_start_epoch_that_never_comes_is_an_error(model_folder: Callable[[str], Path]) -> None:
    model = build_classifier(model_folder("bert"), 3)
    with pytest.raises(TrainingError, match="moved nothing"):
        fit(model, "awp(start_epoch=5.0)")


# -- sam, asam ----------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["linear", "matrices", "all"])
@pytest.mark.parametrize("eta", [None, 0.01, 0.3])
def test_sam_gradient(eta: float | None, which: str, model: Classifier) -> None:
    batch = padded_batch(model)
    clean = clean_gradients(model, batch)
    offsets = sam_offsets(model, clean, which, 0.6, eta)
    strategy = (
        SAM(rho=0.6, weights=which)  # type: ignore[arg-type]
        if eta is None
        else ASAM(rho=0.6, eta=eta, weights=which)  # type: ignore[arg-type]
    )
    got = trained(strategy, model, batch)
    assert relative_error(got, clean_gradients(moved_copy(model, offsets), batch)) <= EXACT
    assert relative_error(got, clean) > 1e-3


def test_sam_moves_all_weights_together_by_rho(model: Classifier) -> None:
    """T22: ||e|| = rho for SAM, ||e / T|| = rho for ASAM with T = |w| + eta."""
    batch = padded_batch(model)
    assert together(offsets_of(SAM(rho=0.3), model, batch)) == pytest.approx(0.3, rel=1e-9)
    scaled = {
        name: offset / (dict(model.named_parameters())[name].detach().abs() + 0.01)
        for name, offset in offsets_of(ASAM(rho=0.3, eta=0.01), model, batch).items()
    }
    assert together(scaled) == pytest.approx(0.3, rel=1e-9)


class Quadratic(nn.Module):
    """Holds the point w of a quadratic loss; the table is there for `Step` and unused."""

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.table = nn.Embedding(12, 2, dtype=torch.float64)
        self.table.weight.requires_grad = False
        self.w = nn.Parameter(start)

    def get_input_embeddings(self) -> nn.Module:
        return self.table


def test_sam_on_a_quadratic_has_its_closed_form() -> None:
    """T22: for L = w'Aw / 2 the gradient is A (w + rho A w / ||A w||); ASAM with T by hand."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(6, 6, dtype=torch.float64, generator=generator)
    matrix = root @ root.T
    start = torch.randn(6, dtype=torch.float64, generator=generator)
    model = Quadratic(start.clone())

    def loss(step: Step, shift: Tensor | None) -> tuple[Tensor, Tensor]:
        return 0.5 * model.w @ matrix @ model.w, model.w

    batch = padded_batch(model)
    slope = matrix @ start
    drive(SAM(rho=0.4)(step_of(model, batch, loss)))
    torch.testing.assert_close(model.w.grad, matrix @ (start + 0.4 * slope / slope.norm()))
    model.zero_grad()
    drive(ASAM(rho=0.4, eta=0.1)(step_of(model, batch, loss)))
    scale = start.abs() + 0.1
    move = 0.4 * scale**2 * slope / (scale * slope).norm()
    torch.testing.assert_close(model.w.grad, matrix @ (start + move))
    assert torch.equal(model.w, start)


def test_asam_does_not_see_how_a_layer_is_scaled() -> None:
    """With eta 0, L(w) and L(c w') at w' = w / c give c times the gradient: same loss at w + e."""
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    scale = torch.tensor([10.0, 0.1, 3.0], dtype=torch.float64)
    batch = padded_batch(Quadratic(start))

    def loss_after_the_climb(strategy: Strategy, factor: Tensor) -> float:
        model = Quadratic(start / factor)

        def loss(step: Step, shift: Tensor | None) -> tuple[Tensor, Tensor]:
            return ((factor * model.w) ** 4).sum(), model.w

        return next(strategy(step_of(model, batch, loss))).item()

    one = torch.ones_like(scale)
    asam, sam = ASAM(rho=0.2, eta=0.0), SAM(rho=0.2)
    assert loss_after_the_climb(asam, scale) == pytest.approx(loss_after_the_climb(asam, one))
    assert loss_after_the_climb(sam, scale) != pytest.approx(loss_after_the_climb(sam, one))


# -- all three ----------------------------------------------------------------------------------

WRAPPERS = [
    "awp(start_epoch=0, gamma=0.1)",
    "awp(start_epoch=0, kind=kaggle, step_size=0.5, epsilon=0.2)",
    "sam(rho=0.6)",
    "asam(rho=0.6)",
]


def offsets_by_hand(spec: str, model: Classifier, clean: Gradients) -> Gradients:
    if "kaggle" in spec:
        return awp_offsets(model, clean, "kaggle", "matrices", step_size=0.5, epsilon=0.2)
    if spec.startswith("awp"):
        return awp_offsets(model, clean, "layer", "matrices", gamma=0.1)
    return sam_offsets(model, clean, "all", 0.6, 0.01 if spec.startswith("asam") else None)


@pytest.mark.parametrize("spec", WRAPPERS)
def test_the_inner_attack_climbs_at_the_moved_weights(spec: str, model: Classifier) -> None:
    """awp+fgm: the direction of the weights is clean, that of the shift is at w + v."""
    batch = padded_batch(model)
    offsets = offsets_by_hand(spec, model, clean_gradients(model, batch))
    other = moved_copy(model, offsets)
    shift = reference_fgm(other, batch, 0.6, "example")
    want = weight_gradients(other, loss_at(other, batch) + loss_at(other, batch, shift))
    got = trained(f"{spec}+fgm(epsilon=0.6, scope=example)", model, batch)
    assert relative_error(got, want) <= EXACT


@pytest.mark.parametrize("spec", WRAPPERS)
def test_the_relative_length_of_the_move_is_noted(spec: str, bert: Classifier) -> None:
    batch = padded_batch(bert)
    offsets = offsets_by_hand(spec, bert, clean_gradients(bert, batch))
    weights = {name: p.detach() for name, p in bert.named_parameters() if name in offsets}
    step = step_of(bert, batch)
    drive(parse_spec(spec, STRATEGIES)(step))
    want = together(offsets) / together(weights)
    assert step.notes["weight_shift"].item() == pytest.approx(want, rel=1e-9)


class Stop(Exception):
    pass


@pytest.mark.parametrize("inner", ["none", "fgm(objective=adv_only)", "freelb", "vat"])
@pytest.mark.parametrize("spec", WRAPPERS)
def test_weights_are_back_bit_for_bit_on_every_exit(
    spec: str, inner: str, bert: Classifier
) -> None:
    """After a whole step, an exception in any pass, one thrown at a yield, and an early close."""
    strategy = parse_spec(f"{spec}+{inner}", STRATEGIES)
    batch = padded_batch(bert)
    before = {name: p.detach().clone() for name, p in bert.named_parameters()}
    pointers = [p.data_ptr() for p in bert.parameters()]

    def check() -> None:
        assert identical(before, dict(bert.named_parameters()))
        assert [p.data_ptr() for p in bert.parameters()] == pointers
        assert all(p.requires_grad for p in bert.parameters())

    step = step_of(bert, batch)
    drive(strategy(step))
    check()
    for at in range(step.forwards):
        left = at

        def fail(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal left
            if left == 0:
                raise Stop
            left -= 1

        with (
            bert.encoder.encoder.register_forward_hook(fail),  # type: ignore[union-attr, operator]
            pytest.raises(Stop),
        ):
            drive(strategy(step_of(bert, batch)))
        check()
    losses = strategy(step_of(bert, batch))
    next(losses)
    assert not identical(before, dict(bert.named_parameters())), "moved while a loss is out"
    with pytest.raises(Stop):
        losses.throw(Stop())
    check()
    losses = strategy(step_of(bert, batch))
    next(losses)
    losses.close()
    check()


@pytest.mark.parametrize(
    "spec",
    [
        "awp(start_epoch=0, gamma=0)",
        "awp(start_epoch=0, kind=kaggle, step_size=0)",
        "awp(start_epoch=0, kind=kaggle, epsilon=0)",
        "awp(start_epoch=0, kind=momentum, epsilon=0)",
        "sam(rho=0)",
        "asam(rho=0)",
    ],
)
def test_without_strength_the_inner_strategy_is_left_bit_for_bit(
    spec: str, bert: Classifier
) -> None:
    """T29: for w + 0 is w, and the extra pass fills no gradient."""
    batch = padded_batch(bert)
    assert parse_spec(spec, STRATEGIES).strength == 0
    for inner in ("none", "fgm", "freelb"):
        got = trained(f"{spec}+{inner}", bert, batch)
        assert identical(got, trained(inner, bert, batch))


def test_frozen_weights_are_not_moved(bert: Classifier) -> None:
    batch = padded_batch(bert)
    for weight in bert.encoder.embeddings.parameters():  # type: ignore[union-attr]
        weight.requires_grad = False
    for strategy in (AWP(weights="all", **NOW), SAM(), ASAM()):
        offsets = offsets_of(strategy, bert, batch)
        moved = {name for name, offset in offsets.items() if offset.any()}
        assert moved
        assert not any("encoder.embeddings" in name for name in moved)


def test_awp_around_fgm_is_not_fgm_around_nothing(bert: Classifier) -> None:
    """The three ways to combine differ, so none of them can stand for another."""
    batch = padded_batch(bert)
    both = trained(AWP(gamma=0.1, inner=FGM(), **NOW), bert, batch)
    for other in (AWP(gamma=0.1, **NOW), FGM()):
        assert relative_error(both, trained(other, bert, batch)) > 1e-3
