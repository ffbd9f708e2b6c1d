"""What is minimised: label smoothing, class weights, focal, R-Drop (T19, T33). In float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from competition_kit.data.encoding import Batch, Encoded, collate
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import (
    BinaryCrossEntropy,
    Criterion,
    CrossEntropy,
    Focal,
    Once,
    RDrop,
)
from competition_kit.training.step import Step
from competition_kit.tricks import parse_tricks
from competition_kit.tricks.criteria import ClassWeights, FocalLoss, LabelSmoothing
from competition_kit.tricks.rdrop import RegularisedDropout

LOGITS = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 2
LABELS = torch.tensor([0, 1, 2, 1, 1, 0])
SEVERAL = torch.tensor([[0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1], [0, 1, 0], [1, 0, 1]])
NONE = np.zeros(0, dtype=np.int64)


# -- label smoothing ----------------------------------------------------------------------------


def test_smoothed_cross_entropy_is_that_of_the_smoothed_target() -> None:
    """-sum_c q_c log p_c with q = (1 - e) one-hot + e / C."""
    criterion = LabelSmoothing(epsilon=0.3).criterion(CrossEntropy(), LABELS.numpy(), 3)
    log_p = LOGITS - LOGITS.logsumexp(1, keepdim=True)
    for row in range(6):
        target = [0.1 + 0.7 * (c == int(LABELS[row])) for c in range(3)]
        want = -sum(q * float(log_p[row, c]) for c, q in enumerate(target))
        assert criterion(LOGITS, LABELS)[row].item() == pytest.approx(want)


def test_smoothed_binary_cross_entropy_is_that_of_the_smoothed_targets() -> None:
    """The mean over labels, with y (1 - e) + e / 2 in place of y."""
    criterion = LabelSmoothing(epsilon=0.3).criterion(BinaryCrossEntropy(), SEVERAL.numpy(), 3)
    p = 1 / (1 + torch.exp(-LOGITS))
    for row in range(6):
        total = 0.0
        for c in range(3):
            y = 0.7 * float(SEVERAL[row, c]) + 0.15
            total -= y * math.log(p[row, c]) + (1 - y) * math.log(1 - p[row, c])
        assert criterion(LOGITS, SEVERAL)[row].item() == pytest.approx(total / 3)


# -- class weights ------------------------------------------------------------------------------


def weights_of(trick: ClassWeights, labels: np.ndarray, classes: int) -> tuple[float, ...]:
    plain = CrossEntropy() if labels.ndim == 1 else BinaryCrossEntropy()
    criterion = trick.criterion(plain, labels, classes)
    assert isinstance(criterion, CrossEntropy | BinaryCrossEntropy)
    return criterion.class_weights


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=60),
    st.floats(0.0, 2.0),
)
def test_the_mean_weight_of_a_training_row_is_one(labels: list[int], power: float) -> None:
    """And weights of classes that are there stand as (1 / count) ** power to each other."""
    rows = np.array(labels)
    weights = np.array(weights_of(ClassWeights(power=power), rows, 4))
    assert weights[rows].mean() == pytest.approx(1.0)
    counts = np.bincount(rows, minlength=4)
    there = counts > 0
    scaled = weights[there] * counts[there] ** power
    np.testing.assert_allclose(scaled, scaled[0], rtol=1e-9)
    assert np.isfinite(weights).all() and (weights > 0).all()


def test_power_one_is_the_balanced_weighting() -> None:
    """N / (C count), as scikit-learn has it, where every class is there."""
    rows = np.array([0] * 6 + [1] * 3 + [2])
    want = [10 / 18, 10 / 9, 10 / 3]
    assert weights_of(ClassWeights(power=1.0), rows, 3) == pytest.approx(want)
    assert weights_of(ClassWeights(power=0.0), rows, 3) == (1.0, 1.0, 1.0)


def test_the_positive_part_of_a_rare_label_counts_more() -> None:
    """(rows without / rows with) ** power: 5/1, 2/4 for 1 and 4 of 6."""
    labels = np.array([[1, 1], [0, 1], [0, 1], [0, 1], [0, 0], [0, 0]])
    assert weights_of(ClassWeights(power=1.0), labels, 2) == pytest.approx((5.0, 0.5))
    assert weights_of(ClassWeights(power=0.5), labels, 2) == pytest.approx((5**0.5, 0.5**0.5))
    lonely = np.array([[1, 0], [1, 0]])  # nowhere missing, nowhere there
    assert weights_of(ClassWeights(power=1.0), lonely, 2) == pytest.approx((0.5, 2.0))


def test_a_row_is_weighted_by_its_class() -> None:
    weights = (0.5, 2.0, 4.0)
    criterion = CrossEntropy(label_smoothing=0.1, class_weights=weights)
    plain = CrossEntropy(label_smoothing=0.1)(LOGITS, LABELS)
    for row, label in enumerate(LABELS.tolist()):
        got = criterion(LOGITS, LABELS)[row].item()
        assert got == pytest.approx(weights[label] * plain[row].item())


def test_the_positive_part_of_a_label_is_weighted() -> None:
    weights = (0.5, 2.0, 4.0)
    got = BinaryCrossEntropy(class_weights=weights)(LOGITS, SEVERAL)
    p = LOGITS.sigmoid()
    y = SEVERAL.double()
    want = -(y * p.log() * torch.tensor(weights) + (1 - y) * (1 - p).log()).mean(1)
    torch.testing.assert_close(got, want)


CRITERIA: list[tuple[Criterion, Tensor]] = [
    (CrossEntropy(label_smoothing=0.1, class_weights=(0.3, 2.0, 5.0)), LABELS),
    (BinaryCrossEntropy(label_smoothing=0.1, class_weights=(0.3, 2.0, 5.0)), SEVERAL),
    (Focal(2.0), LABELS),
    (Focal(2.0), SEVERAL),
]


@pytest.mark.parametrize(("criterion", "labels"), CRITERIA)
def test_micro_batches_add_up_to_their_batch(criterion: Criterion, labels: Tensor) -> None:
    """T33: a mean over rows; one over weights would let a batch without rare classes count more."""
    whole = criterion(LOGITS, labels)
    assert whole.shape == (6,)
    parts = [criterion(LOGITS[a:b], labels[a:b]).mean() * (b - a) / 6 for a, b in [(0, 2), (2, 6)]]
    torch.testing.assert_close(sum(parts), whole.mean())


def test_smoothing_and_weights_go_together_in_any_order() -> None:
    rows = np.array([0, 0, 0, 1, 1, 2])
    built: list[Criterion] = []
    for text in (
        "label_smoothing(epsilon=0.2), class_weights",
        "class_weights, label_smoothing(epsilon=0.2)",
    ):
        criterion: Criterion = CrossEntropy()
        for trick in parse_tricks(text):
            criterion = trick.criterion(criterion, rows, 3)  # type: ignore[attr-defined]
        built.append(criterion)
    assert built[0] == built[1]
    assert isinstance(built[0], CrossEntropy)
    assert built[0].label_smoothing == 0.2 and built[0].class_weights


# -- focal --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_is_its_formula(gamma: float) -> None:
    criterion = FocalLoss(gamma=gamma).criterion(CrossEntropy(), NONE, 3)
    p = torch.exp(LOGITS) / torch.exp(LOGITS).sum(1, keepdim=True)
    for row, label in enumerate(LABELS.tolist()):
        q = float(p[row, label])
        want = -((1 - q) ** gamma) * math.log(q)
        assert criterion(LOGITS, LABELS)[row].item() == pytest.approx(want)
    p = 1 / (1 + torch.exp(-LOGITS))
    for row in range(6):
        total = 0.0
        for c in range(3):
            q = float(p[row, c]) if SEVERAL[row, c] else 1 - float(p[row, c])
            total -= (1 - q) ** gamma * math.log(q)
        assert criterion(LOGITS, SEVERAL)[row].item() == pytest.approx(total / 3)


def test_focal_without_gamma_is_the_cross_entropy() -> None:
    """T33, values and gradients."""
    for plain, labels in ((CrossEntropy(), LABELS), (BinaryCrossEntropy(), SEVERAL)):
        leaf = LOGITS.clone().requires_grad_()
        one, other = Focal(0.0)(leaf, labels), plain(leaf, labels)
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
        slopes = [torch.autograd.grad(x.sum(), leaf, retain_graph=True)[0] for x in (one, other)]
        torch.testing.assert_close(slopes[0], slopes[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("labels", [torch.tensor([0]), torch.tensor([[1, 0, 0]])])
@pytest.mark.parametrize("size", [20.0, 200.0])
def test_focal_has_a_finite_gradient_where_the_answer_is_certain(
    size: float, labels: Tensor, gamma: float
) -> None:
    """At p = 1 in fp32 the slope of (1 - p) ** gamma is infinite for gamma < 1: NaN times log 1."""
    logits = torch.tensor([[size, -size, -size]], requires_grad=True)
    loss = Focal(gamma)(logits, labels).sum()
    loss.backward()
    assert torch.isfinite(loss) and loss >= 0
    assert torch.isfinite(logits.grad).all()  # type: ignore[arg-type]
    assert logits.grad.abs().max() < 1e-3  # type: ignore[union-attr]


# -- R-Drop -------------------------------------------------------------------------------------


@pytest.fixture
def model(model_folder: Callable[[str], Path]) -> Classifier:
    built = build_classifier(model_folder("bert"), 3, dropout=0.4).double().train()
    nn.init.normal_(built.head.weight)
    return built


def batch_of(labels: Tensor) -> Batch:
    generator = np.random.default_rng(0)
    lengths = np.array([5, 3, 7, 4, 6, 2])
    ids = generator.integers(5, 24, size=int(lengths.sum())).astype(np.int32)
    encoded = Encoded(ids, None, np.cumsum([0, *lengths]), truncated=0, pad_id=0)
    return collate(encoded, np.arange(6), labels.numpy())


@pytest.mark.parametrize("labels", [LABELS, SEVERAL])
def test_rdrop_is_its_formula_with_gradient_through_both_sides(
    labels: Tensor, model: Classifier
) -> None:
    """T19: (L1 + L2) / 2 + alpha (KL(p1 || p2) + KL(p2 || p1)) / 2 for each row, then the mean."""
    several = labels.ndim == 2
    plain = BinaryCrossEntropy() if several else CrossEntropy()
    objective = RegularisedDropout(alpha=0.7).objective(plain)
    torch.manual_seed(0)
    loss, first = objective(Step(model, batch_of(labels), objective, torch.Generator()), None)
    loss.backward()
    got = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    batch = batch_of(labels)
    torch.manual_seed(0)
    one, two = model(*batch.inputs), model(*batch.inputs)
    assert torch.equal(first, one) and not torch.equal(one, two)
    if several:
        p, q = (torch.stack([x.sigmoid(), 1 - x.sigmoid()], -1) for x in (one, two))
        losses = [
            functional.binary_cross_entropy_with_logits(x, labels.double()) for x in (one, two)
        ]
    else:
        p, q = one.softmax(1), two.softmax(1)
        losses = [functional.cross_entropy(x, labels) for x in (one, two)]
    kl = ((p * (p / q).log()).sum() + (q * (q / p).log()).sum()) / 6
    want = sum(losses) / 2 + 0.7 * kl / 2
    want.backward()  # type: ignore[union-attr]
    assert loss.item() == pytest.approx(float(want.detach()))  # type: ignore[union-attr]
    assert kl > 1e-3
    for name, weight in model.named_parameters():
        if weight.grad is not None:
            torch.testing.assert_close(got[name], weight.grad, rtol=1e-9, atol=1e-12)


def test_rdrop_without_dropout_is_the_plain_loss(model: Classifier) -> None:
    """T19: two equal passes; the distance is 0 whatever alpha is."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    batch = batch_of(LABELS)
    values = [
        objective(Step(model, batch, objective, torch.Generator()), None)[0].item()
        for objective in (Once(CrossEntropy()), RDrop(CrossEntropy(), 100.0))
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def test_rdrop_carries_the_criterion_of_other_tricks(model: Classifier) -> None:
    """Smoothing and weights are in both of its supervised parts."""
    criterion = CrossEntropy(label_smoothing=0.2, class_weights=(1.0, 3.0, 0.5))
    objective = RDrop(criterion, 0.0)
    batch = batch_of(LABELS)
    torch.manual_seed(0)
    got = objective(Step(model, batch, objective, torch.Generator()), None)[0]
    torch.manual_seed(0)
    both = [criterion(model(*batch.inputs), LABELS).mean() for _ in range(2)]
    assert got.item() == pytest.approx((both[0] + both[1]).item() / 2)
