"""Every trick against an independent reference, closed forms, and the claims of the method cards.

All in float64 on the CPU, dropout 0 unless said. T1 to T34 are the claims that the tricks were
designed against; each test says which one it checks.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import Tensor, nn

from competition_kit.data.encoding import Batch
from competition_kit.strategies import Strategy
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.freelb import FreeLB
from competition_kit.strategies.neftune import NEFTune
from competition_kit.strategies.none import Plain
from competition_kit.strategies.pgd import PGD
from competition_kit.training.fit import predict
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.objectives import BinaryCrossEntropy, Once
from competition_kit.training.step import Step

from . import reference
from .tools import (
    EXACT,
    KINDS,
    SEED,
    Gradients,
    Linear,
    added,
    binary_batch,
    drive,
    fit,
    gradients,
    l2,
    make_batch,
    relative_error,
    step_of,
    toy_batch,
    toy_classifier,
    toy_rows,
    trained,
    true_lengths,
)

TIGHT = 1e-12  # relative error of the same few operations in another order
ModelFolder = Callable[[str], Path]


def noise(seed: int = SEED) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shifts_of(strategy: Strategy, model: nn.Module, batch: Batch) -> list[Tensor]:
    model.zero_grad()
    step = step_of(model, batch)
    drive(strategy(step))
    return step.shifts


def table_of(shift: Tensor, batch: Batch) -> dict[int, Tensor]:
    """Return the change of each token's row that a table-scope shift stands for."""
    rows: dict[int, Tensor] = {}
    for i, t in np.ndindex(*batch.input_ids.shape):
        token = int(batch.input_ids[i, t])
        assert torch.equal(rows.setdefault(token, shift[i, t]), shift[i, t]), (
            "one token, two shifts"
        )
    return rows


def table_norm(shift: Tensor, batch: Batch) -> float:
    return l2(torch.stack(list(table_of(shift, batch).values())))


# -- the recipes --------------------------------------------------------------------------------

FREELB: dict[str, Any] = {"steps": 3, "step_size": 0.4, "init": 0.3}
NEFTUNE: dict[str, Any] = {"alpha": 4.0}

AGAINST_REFERENCE: dict[str, tuple[Strategy, Callable[[Classifier, Batch], Gradients]]] = {
    "none": (Plain(), reference.plain),
    "fgm table": (
        FGM(epsilon=0.7, scope="table"),
        lambda m, b: reference.fgm_table(m, b, epsilon=0.7),
    ),
    "pgd table, free": (
        PGD(epsilon=9.0, step_size=0.3, steps=3, scope="table"),
        lambda m, b: reference.pgd_table(m, b, epsilon=9.0, step_size=0.3, steps=3),
    ),
    "pgd table, projected": (
        PGD(epsilon=0.5, step_size=0.3, steps=4, scope="table"),
        lambda m, b: reference.pgd_table(m, b, epsilon=0.5, step_size=0.3, steps=4),
    ),
}
for _scope in ("example", "token"):
    AGAINST_REFERENCE[f"fgm {_scope}"] = (
        FGM(epsilon=0.7, scope=_scope),  # type: ignore[arg-type]
        lambda m, b, s=_scope: reference.fgm(m, b, epsilon=0.7, scope=s),
    )
    for _epsilon in (9.0, 0.5):
        AGAINST_REFERENCE[f"pgd {_scope}, epsilon {_epsilon}"] = (
            PGD(epsilon=_epsilon, step_size=0.3, steps=3, scope=_scope),  # type: ignore[arg-type]
            lambda m, b, s=_scope, e=_epsilon: reference.pgd(
                m, b, epsilon=e, step_size=0.3, steps=3, scope=s
            ),
        )
for _noise in ("uniform", "gaussian"):
    for _length in ("true", "padded"):
        AGAINST_REFERENCE[f"neftune {_noise} {_length}"] = (
            NEFTune(alpha=4.0, noise=_noise, length=_length),  # type: ignore[arg-type]
            lambda m, b, n=_noise, k=_length: reference.neftune(
                m, b, noise(), alpha=4.0, noise=n, length=k
            ),
        )
for _settings in (
    {**FREELB},
    {**FREELB, "init": 0.0},
    {**FREELB, "max_norm": 0.5},
    {**FREELB, "init": 2.0, "max_norm": 0.3},  # starts outside the ball: only ascents project
    {**FREELB, "passes": "steps+1"},
    {**FREELB, "passes": "steps+1", "init": 0.0, "max_norm": 0.5},
    {**FREELB, "norm": "linf", "step_size": 0.05, "init": 0.02},
    {**FREELB, "norm": "linf", "step_size": 0.05, "init": 0.0, "passes": "steps+1"},
    {**FREELB, "norm": "linf", "step_size": 0.05, "init": 0.02, "max_norm": 0.06},
    {**FREELB, "steps": 1},
):
    AGAINST_REFERENCE["freelb " + " ".join(f"{k}={v}" for k, v in _settings.items())] = (
        FreeLB(**_settings),
        lambda m, b, s=_settings: reference.freelb(m, b, noise(), **s),
    )
AGAINST_REFERENCE["neftune+fgm example"] = (
    NEFTune(alpha=4.0, inner=FGM(epsilon=0.7, scope="example")),
    lambda m, b: reference.fgm(
        m,
        b,
        epsilon=0.7,
        scope="example",
        noise=reference.neftune_noise(m, b, noise(), alpha=4.0, noise="uniform", length="true"),
    ),
)


@pytest.mark.parametrize("name", AGAINST_REFERENCE)
def test_gradients_equal_the_reference(name: str, model: Classifier) -> None:
    """T1, T3, T8, T9, T10, T12: every parameter's gradient, one label per text."""
    strategy, by_hand = AGAINST_REFERENCE[name]
    batch = toy_batch(model, extra_padding=2)
    got = trained(strategy, model, batch)
    assert relative_error(got, by_hand(model, batch)) <= EXACT
    if name != "none":  # the comparison would be empty if the attack hardly changed anything
        passes = 2.0 if name.startswith(("fgm", "pgd", "neftune+fgm")) else 1.0
        clean = added(reference.plain(model, batch), weight=passes)
        assert relative_error(got, clean) > 1e-3


@pytest.mark.parametrize(
    "name", ["none", "fgm table", "fgm example", "pgd table, projected", "neftune uniform true"]
)
def test_gradients_equal_the_reference_with_several_labels(name: str, model: Classifier) -> None:
    strategy, by_hand = AGAINST_REFERENCE[name]
    batch = toy_batch(model, multi_label=True)
    assert relative_error(trained(strategy, model, batch), by_hand(model, batch)) <= EXACT


@pytest.mark.parametrize("pooling", ["cls", "max", "attention"])
@pytest.mark.parametrize("name", ["fgm table", "fgm example", "pgd token, epsilon 0.5"])
def test_gradients_equal_the_reference_with_every_pooling(
    pooling: str, name: str, model_folder: ModelFolder
) -> None:
    model = toy_classifier(model_folder("bert"), pooling=pooling)
    strategy, by_hand = AGAINST_REFERENCE[name]
    batch = toy_batch(model)
    if pooling == "max" and name.startswith("pgd token"):
        # positions that no maximum comes from may have no gradient at all
        strategy, by_hand = AGAINST_REFERENCE["pgd example, epsilon 0.5"]
    assert relative_error(trained(strategy, model, batch), by_hand(model, batch)) <= EXACT


def test_segments_reach_the_model_in_every_pass(bert: Classifier) -> None:
    batch = toy_batch(bert)
    types = (torch.arange(batch.input_ids.shape[1]) > 2).long().expand_as(batch.input_ids)
    paired = Batch(
        batch.input_ids, batch.attention_mask, types, batch.labels, batch.slots, batch.distinct
    )
    strategy, by_hand = AGAINST_REFERENCE["fgm example"]
    got = trained(strategy, bert, paired)
    assert relative_error(got, by_hand(bert, paired)) <= EXACT
    assert relative_error(got, by_hand(bert, batch)) > 1e-3


def test_the_padding_token_inside_a_text_gets_no_table_shift(bert: Classifier) -> None:
    """`nn.Embedding` gives its padding row no gradient, so the recipe never moves that row."""
    batch = toy_batch(bert)
    ids = batch.input_ids.clone()
    ids[0, 3] = 0  # [PAD] where attention looks
    batch = make_batch(ids, (9, 4, 6, 2), batch.labels)  # type: ignore[arg-type]
    strategy, by_hand = AGAINST_REFERENCE["pgd table, projected"]
    assert relative_error(trained(strategy, bert, batch), by_hand(bert, batch)) <= EXACT


# -- fgm ----------------------------------------------------------------------------------------


def test_fgm_table_shift_is_the_gradient_of_the_table(model: Classifier) -> None:
    """T1, T2: delta[v] = epsilon * G[v] / ||G||_F with autograd's own gradient G of the table."""
    batch = toy_batch(model, extra_padding=2)
    (table,) = [p for name, p in model.named_parameters() if "word_embeddings" in name]
    (gradient,) = torch.autograd.grad(reference.loss_of(model, batch), table)
    _, shift = shifts_of(FGM(epsilon=0.7, scope="table"), model, batch)
    for token, row in table_of(shift, batch).items():
        assert torch.allclose(row, 0.7 * gradient[token] / gradient.norm(), rtol=0, atol=1e-14)
    assert table_norm(shift, batch) == pytest.approx(0.7, rel=TIGHT)


def test_fgm_shift_has_length_epsilon_in_its_scope(model: Classifier) -> None:
    """T2: per text, per token; nothing on padding."""
    batch = toy_batch(model, extra_padding=2)
    _, example = shifts_of(FGM(epsilon=0.7, scope="example"), model, batch)
    _, token = shifts_of(FGM(epsilon=0.7, scope="token"), model, batch)
    for i, length in enumerate(true_lengths(batch)):
        assert l2(example[i]) == pytest.approx(0.7, rel=TIGHT)
        for t in range(length):
            assert l2(token[i, t]) == pytest.approx(0.7, rel=TIGHT)
        assert not example[i, length:].any()
        assert not token[i, length:].any()


def test_fgm_on_a_linear_model_is_the_sign_of_the_margin_times_w() -> None:
    """Closed form of the three scopes.

    f_i = w . mean_t E_it, loss = mean_i softplus(-s_i f_i), s = +1 or -1. So
    dL/dE_it = c_i w, c_i = -s_i sigma(-s_i f_i) / (B n_i), at each of the n_i tokens. Then
    example: r_it = -epsilon s_i w / (||w|| sqrt(n_i)); token: r_it = -epsilon s_i w / ||w||;
    table: with a_v the sum of c_i over the occurrences of v, r_v = epsilon a_v w / (||w|| ||a||).
    """
    model = Linear()
    batch = binary_batch(model, extra=2)
    assert batch.labels is not None
    signs = [1.0 if y else -1.0 for y in batch.labels.flatten().tolist()]
    lengths = true_lengths(batch)
    unit = model.w.detach() / l2(model.w.detach())
    shifts = {
        scope: shifts_of(FGM(epsilon=0.7, scope=scope), model, batch)[1]
        for scope in ("example", "token", "table")
    }  # type: ignore[arg-type]

    coefficients: dict[int, float] = {}
    for i, (s, n) in enumerate(zip(signs, lengths, strict=True)):
        f = float(model.table.weight.detach()[batch.input_ids[i, :n]].mean(0) @ model.w.detach())
        c = -s / (1 + math.exp(s * f)) / (len(signs) * n)
        for t in range(n):
            token = int(batch.input_ids[i, t])
            coefficients[token] = coefficients.get(token, 0.0) + c
    size = math.sqrt(sum(a * a for a in coefficients.values()))
    for i, (s, n) in enumerate(zip(signs, lengths, strict=True)):
        for t in range(n):
            a = coefficients[int(batch.input_ids[i, t])]
            assert torch.allclose(
                shifts["example"][i, t], -0.7 * s * unit / math.sqrt(n), atol=1e-14
            )
            assert torch.allclose(shifts["token"][i, t], -0.7 * s * unit, atol=1e-14)
            assert torch.allclose(shifts["table"][i, t], 0.7 * a / size * unit, atol=1e-14)


@pytest.mark.parametrize("scope", ["table", "example", "token"])
def test_fgm_gains_epsilon_times_the_gradient_to_first_order(scope: Any, model: Classifier) -> None:
    """T4: L(E + r) - L(E) = epsilon * (sum of the norms) + O(epsilon^2).

    r follows the gradient in every group of the scope, so <g, r> = epsilon * sum of the groups'
    gradient norms. Halving epsilon quarters what is left.
    """
    batch = toy_batch(model)
    _, g = reference.gradients_at(model, batch, None)
    if scope == "table":
        (table,) = [p for name, p in model.named_parameters() if "word_embeddings" in name]
        (gradient,) = torch.autograd.grad(reference.loss_of(model, batch), table)
        slope = l2(gradient)
    else:
        groups = [g[i, :n] for i, n in enumerate(true_lengths(batch))]
        slope = sum(l2(group) if scope == "example" else sum(map(l2, group)) for group in groups)

    def left_over(epsilon: float) -> float:
        clean, attacked = drive(FGM(epsilon=epsilon, scope=scope)(step_of(model, batch)))
        return attacked - clean - epsilon * slope

    assert abs(left_over(1e-3)) < 0.05 * 1e-3 * slope
    assert left_over(2e-3) / left_over(1e-3) == pytest.approx(4.0, rel=0.05)


@pytest.mark.parametrize(
    "strategy",
    [
        FGM(epsilon=0.7, scope="example"),
        FGM(epsilon=0.7, scope="table"),
        PGD(epsilon=0.5, scope="token"),
        FreeLB(steps=3, step_size=0.4, init=0.0, max_norm=0.5),
    ],
)
def test_attacks_do_not_depend_on_the_padded_length(strategy: Strategy, model: Classifier) -> None:
    """T5."""
    short, long = (toy_batch(model, extra_padding=extra) for extra in (0, 7))
    assert torch.equal(short.input_ids, long.input_ids[:, :9])
    got, want = (trained(strategy, model, batch) for batch in (long, short))
    assert relative_error(got, want) <= EXACT


def test_example_scope_attacks_each_text_alone_and_table_scope_does_not(model: Classifier) -> None:
    """T6: the first text stays, the others are replaced."""
    one, other = (toy_batch(model, seed=seed) for seed in (0, 1))
    ids = other.input_ids.clone()
    ids[0] = one.input_ids[0]
    assert one.labels is not None and other.labels is not None
    labels = torch.cat([one.labels[:1], other.labels[1:]])
    other = make_batch(ids, true_lengths(one), labels)
    for strategy, alone in (
        (FGM(epsilon=0.7, scope="example"), True),
        (FGM(epsilon=0.7, scope="token"), True),
        (FGM(epsilon=0.7, scope="table"), False),
        (PGD(epsilon=0.5, scope="example"), True),
        (PGD(epsilon=0.5, scope="table"), False),
        (FreeLB(init=0.0, step_size=0.4, max_norm=0.5), True),
    ):
        first, second = (shifts_of(strategy, model, batch)[-1][0] for batch in (one, other))
        assert (l2(first - second) <= 1e-11 * l2(first)) == alone, strategy


# -- pgd ----------------------------------------------------------------------------------------


def norms_in(scope: str, shift: Tensor, batch: Batch) -> list[float]:
    if scope == "table":
        return [table_norm(shift, batch)]
    rows = [shift[i, :n] for i, n in enumerate(true_lengths(batch))]
    return [l2(x) for row in rows for x in ([row] if scope == "example" else row)]


@pytest.mark.parametrize("scope", ["table", "example", "token"])
def test_pgd_never_leaves_its_ball_and_ends_on_its_surface(scope: Any, model: Classifier) -> None:
    """T7: two steps of 0.3 reach beyond 0.5 here, so the later points lie exactly on it."""
    batch = toy_batch(model, extra_padding=2)
    clean, *points = shifts_of(PGD(epsilon=0.5, step_size=0.3, steps=3, scope=scope), model, batch)
    free = shifts_of(PGD(epsilon=1e9, step_size=0.3, steps=3, scope=scope), model, batch)
    assert not clean.any()
    assert len(points) == 3
    for shift in points:
        assert all(norm <= 0.5 * (1 + TIGHT) for norm in norms_in(scope, shift, batch))
        assert not shift[batch.attention_mask == 0].any()
    reached = norms_in(scope, free[2], batch)  # both runs agree up to the second point's projection
    assert max(reached) > 0.5
    for norm, beyond in zip(norms_in(scope, points[1], batch), reached, strict=True):
        assert norm == pytest.approx(min(0.5, beyond), rel=TIGHT)


@pytest.mark.parametrize("scope", ["table", "example", "token"])
def test_pgd_radius_out_of_reach_changes_nothing(scope: Any, model: Classifier) -> None:
    """T7: three steps of at most 0.3 stay within 0.9, so 0.9 and 1e9 are one setting."""
    batch = toy_batch(model)
    near, far, tight = (
        trained(PGD(epsilon=e, step_size=0.3, steps=3, scope=scope), model, batch)
        for e in (0.9, 1e9, 0.5)
    )
    assert relative_error(near, far) <= TIGHT
    assert relative_error(tight, far) > 1e-4


def test_pgd_says_when_its_radius_is_out_of_reach() -> None:
    (remark,) = PGD(epsilon=1.0, step_size=0.3, steps=3).remarks()
    assert "epsilon=1 has no effect" in remark
    assert PGD(epsilon=0.5, step_size=0.3, steps=3).remarks() == []


def test_pgd_climbs_in_equal_steps_where_the_gradient_keeps_its_direction() -> None:
    """T7: on the linear model every gradient is parallel to w, so ||r_t|| = 0.3 t, then 0.5."""
    model = Linear()
    batch = binary_batch(model)
    free = shifts_of(PGD(epsilon=9.0, step_size=0.3, steps=3, scope="example"), model, batch)
    held = shifts_of(PGD(epsilon=0.5, step_size=0.3, steps=3, scope="example"), model, batch)
    for t in range(4):
        for i in range(len(batch)):
            assert l2(free[t][i]) == pytest.approx(0.3 * t, rel=TIGHT)
            assert l2(held[t][i]) == pytest.approx(min(0.5, 0.3 * t), rel=TIGHT)


@pytest.mark.parametrize("scope", ["table", "example", "token"])
def test_pgd_with_one_step_is_fgm(scope: Any, model: Classifier) -> None:
    """T8."""
    batch = toy_batch(model)
    one = trained(PGD(epsilon=0.7, step_size=0.7, steps=1, scope=scope), model, batch)
    fgm = trained(FGM(epsilon=0.7, scope=scope), model, batch)
    assert relative_error(one, fgm) <= TIGHT


def test_pgd_inner_passes_leave_no_trace_in_the_gradients(bert: Classifier) -> None:
    """T8: after the clean backward, `.grad` stays bit for bit until the last loss is yielded."""
    step = step_of(bert, toy_batch(bert))
    losses = PGD(epsilon=0.5, steps=3)(step)
    next(losses).backward()
    before = gradients(bert)
    next(losses)
    assert step.input_backwards == 2
    assert all(torch.equal(before[name], grad) for name, grad in gradients(bert).items())
    losses.close()


# -- freelb -------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", [0.0, 0.6])
@pytest.mark.parametrize("passes", ["steps", "steps+1"])
def test_freelb_on_a_linear_model_by_hand(init: float, passes: Any) -> None:
    """T10: the whole path and the mean gradient in closed form.

    f_i(r) = w . mean_t (E_it + r_it), loss = mean_i softplus(-s_i f_i). dL/dr_it is c_i w with
    sign(c_i) = -s_i at all n_i true tokens wherever we stand, so the normalised direction is
    always -s_i w / (||w|| sqrt(n_i)) and r_t = r_0 - t * step_size * s_i w / (||w|| sqrt(n_i)).
    The gradient of w is the mean over t and i of -s_i sigma(-s_i f_i(r_t)) * mean_t (E_it + r_it).
    """
    model = Linear()
    batch = binary_batch(model, extra=2)
    assert batch.labels is not None
    rows, padded = batch.input_ids.shape
    width = 8
    w = model.w.detach()
    draw = torch.empty(rows, padded, width, dtype=torch.float64).uniform_(-1, 1, generator=noise())
    count = 3 + (passes == "steps+1")
    want = torch.zeros_like(w)
    for t in range(count):
        for i, n in enumerate(true_lengths(batch)):
            s = 1.0 if batch.labels[i] else -1.0
            start = init * draw[i, :n] / math.sqrt(n * width)
            shift = start - t * 0.4 * s * w / (l2(w) * math.sqrt(n))
            mean = (model.table.weight.detach()[batch.input_ids[i, :n]] + shift).mean(0)
            want += -s / (1 + math.exp(s * float(w @ mean))) * mean / (rows * count)

    strategy = FreeLB(steps=3, step_size=0.4, init=init, passes=passes)
    got = trained(strategy, model, batch)["w"]
    assert l2(got - want) <= TIGHT * l2(want)


def test_freelb_with_one_pass_is_training_on_noise(model: Classifier) -> None:
    """T10: K = 1 never ascends; with init 0 it is plain training, bit for bit."""
    batch = toy_batch(model)
    (shift,) = shifts_of(FreeLB(steps=1, init=0.6), model, batch)
    noisy = trained(FreeLB(steps=1, init=0.6), model, batch)
    assert relative_error(noisy, reference.gradients_at(model, batch, shift)[0]) <= EXACT
    none, plain = (trained(s, model, batch) for s in (FreeLB(steps=1, init=0.0), Plain()))
    assert all(torch.equal(none[name], plain[name]) for name in plain)


def test_freelb_starts_at_init_over_root_three_within_its_bound() -> None:
    """T11: per element at most init / sqrt(n d), variance a third of its square, so the L2 norm
    of a text's start is init / sqrt(3) on average; zero on padding."""
    model = Linear(width=512, zero=True)
    lengths = (40, 25, 33, 60)  # n d > 1e4 each
    batch = binary_batch(model, lengths)
    starts = []
    for seed in range(5):
        model.seen.clear()
        step = Step(model, batch, Once(BinaryCrossEntropy()), noise(seed))
        drive(FreeLB(steps=2, init=0.6)(step))
        starts.append(model.seen[0])
    norms = [l2(start[i]) for start in starts for i in range(len(lengths))]
    assert np.mean(norms) == pytest.approx(0.6 / math.sqrt(3), rel=0.01)
    for i, n in enumerate(lengths):
        bound = 0.6 / math.sqrt(n * 512)
        largest = max(float(start[i].abs().max()) for start in starts)
        assert 0.999 * bound < largest <= bound
        assert not any(start[i, n:].any() for start in starts)


def test_freelb_linf_starts_within_init() -> None:
    model = Linear(width=512, zero=True)
    batch = binary_batch(model, (40, 25))
    drive(FreeLB(steps=2, init=0.6, norm="linf")(step_of(model, batch)))
    for row, n in zip(model.seen[0], (40, 25), strict=True):
        assert 0.599 < float(row.abs().max()) <= 0.6
        assert float(row[:n].std()) == pytest.approx(0.6 / math.sqrt(3), rel=0.02)
        assert not row[n:].any()


@pytest.mark.parametrize(("passes", "count"), [("steps", 3), ("steps+1", 4)])
def test_freelb_counts_passes_as_either_of_its_versions(
    passes: Any, count: int, model: Classifier
) -> None:
    """T12: the ascents are the changes of the shift between passes."""
    batch = toy_batch(model)
    shifts = shifts_of(FreeLB(steps=3, init=0.0, step_size=0.4, passes=passes), model, batch)
    assert len(shifts) == count
    assert not shifts[0].any()
    for before, after in pairwise(shifts):
        assert all(l2(row) == pytest.approx(0.4, rel=TIGHT) for row in after - before)


def test_freelb_max_norm_zero_is_no_bound_and_others_are_exact(model: Classifier) -> None:
    """T13; a start outside the ball is left alone, as in both published versions."""
    batch = toy_batch(model)
    settings: dict[str, Any] = {"steps": 4, "step_size": 0.4, "init": 0.0}
    free, far = (trained(FreeLB(**settings, max_norm=m), model, batch) for m in (0.0, 1e9))
    assert all(torch.equal(free[name], far[name]) for name in free)
    shifts = shifts_of(FreeLB(**settings, max_norm=0.0), model, batch)
    assert all(l2(row) > 0.6 for row in shifts[-1])
    shifts = shifts_of(FreeLB(**settings, max_norm=0.5), model, batch)
    assert all(l2(row) == pytest.approx(0.4, rel=TIGHT) for row in shifts[1])
    assert all(l2(row) == pytest.approx(0.5, rel=TIGHT) for row in shifts[2])
    outside = shifts_of(FreeLB(steps=2, init=3.0, max_norm=0.5), model, batch)
    assert all(l2(row) > 1 for row in outside[0])
    assert all(l2(row) == pytest.approx(0.5, rel=TIGHT) for row in outside[1])


def test_freelb_linf_steps_and_clamps_by_the_largest_entry(model: Classifier) -> None:
    """T13 for the maximum norm: each ascent moves a text's largest entry by the step size."""
    batch = toy_batch(model)
    settings: dict[str, Any] = {"steps": 4, "step_size": 0.05, "init": 0.0, "norm": "linf"}
    shifts = shifts_of(FreeLB(**settings), model, batch)
    for before, after in pairwise(shifts):
        assert all(float(row.abs().max()) == pytest.approx(0.05) for row in after - before)
    held = shifts_of(FreeLB(**settings, max_norm=0.06), model, batch)
    assert all(float(shift.abs().max()) <= 0.06 for shift in held)
    assert float(shifts[2].abs().max()) > 0.06
    assert torch.equal(held[2], shifts[2].clamp(-0.06, 0.06))


# -- neftune ------------------------------------------------------------------------------------


def noise_of(strategy: Strategy, lengths: tuple[int, ...], extra: int = 0, seed: int = 0) -> Tensor:
    """Return the shift that the embeddings of a width-64 model really get."""
    model = Linear(width=64, zero=True)
    batch = binary_batch(model, lengths, extra)
    drive(strategy(Step(model, batch, Once(BinaryCrossEntropy()), noise(seed))))
    (seen,) = model.seen
    return seen


@pytest.mark.parametrize("kind", ["uniform", "gaussian"])
@pytest.mark.parametrize("length", ["true", "padded"])
def test_neftune_noise_has_its_bound_and_variance(kind: Any, length: Any) -> None:
    """T14: per element alpha / sqrt(n d) at most (uniform), and variance alpha^2 / (3 n d).

    The mean of N squares has relative standard deviation sqrt(0.8 / N) for uniform noise
    (E x^4 / (E x^2)^2 = 9/5) and sqrt(2 / N) for normal noise; five of them are allowed. The mean
    is zero within five of its own.
    """
    alpha, lengths = 5.0, (50, 20, 9)
    strategy = NEFTune(alpha=alpha, noise=kind, length=length)
    drawn = [noise_of(strategy, lengths, seed=seed) for seed in range(10)]
    for i, own in enumerate(lengths):
        n = own if length == "true" else 50
        part = torch.stack([shift[i, :n] for shift in drawn])  # padding too where it is noised
        variance = alpha**2 / (3 * n * 64)
        slack = 5 * math.sqrt((0.8 if kind == "uniform" else 2.0) / part.numel())
        assert float(part.square().mean()) / variance == pytest.approx(1.0, abs=slack)
        assert abs(float(part.mean())) < 5 * math.sqrt(variance / part.numel())
        bound = alpha / math.sqrt(n * 64)
        if kind == "uniform":
            assert 0.99 * bound < float(part.abs().max()) <= bound
        else:
            assert float(part.abs().max()) > 1.5 * bound
        if length == "true":
            assert not any(shift[i, own:].any() for shift in drawn)


def test_neftune_padded_length_depends_on_the_batch_and_true_length_does_not() -> None:
    """T5: the scale of a text's noise, measured as noise over the numbers that were drawn."""
    for length, same in (("true", True), ("padded", False)):
        scales = []
        for extra in (0, 7):
            seen = noise_of(NEFTune(alpha=5.0, length=length), (9, 4), extra)  # type: ignore[arg-type]
            draw = torch.empty(seen.shape, dtype=torch.float64).uniform_(-1, 1, generator=noise(0))
            scales.append(seen[1, :4] / draw[1, :4])
            n = 4 if length == "true" else 9 + extra
            assert torch.allclose(scales[-1], torch.tensor(5 / math.sqrt(n * 64)).double())
        assert torch.allclose(*scales) == same


def test_neftune_alpha_zero_is_plain_bit_for_bit(model: Classifier) -> None:
    """T14."""
    batch = toy_batch(model)
    for settings in ({"noise": "uniform"}, {"noise": "gaussian", "length": "padded"}):
        zero = trained(NEFTune(alpha=0.0, **settings), model, batch)  # type: ignore[arg-type]
        plain = trained(Plain(), model, batch)
        assert all(torch.equal(zero[name], plain[name]) for name in plain)


@pytest.mark.parametrize("inner", [FGM(scope="example"), PGD(steps=3), FreeLB(steps=3, init=0.0)])
def test_neftune_keeps_one_draw_through_all_passes_of_its_inner_strategy(inner: Strategy) -> None:
    """The clean pass of the attack stands on the noise; every later pass is that plus its shift."""
    model = Linear(zero=True)
    batch = binary_batch(model)
    step = step_of(model, batch)
    drive(NEFTune(alpha=5.0, inner=inner)(step))
    standing = model.seen[0]
    assert standing.any()
    assert len(model.seen) == len(step.shifts) > 1
    for seen, shift in zip(model.seen, step.shifts, strict=True):
        assert torch.allclose(seen, standing + shift, rtol=0, atol=1e-15)


def test_no_noise_in_prediction(model_folder: ModelFolder) -> None:
    """T14: after training with noise, predictions are those of the bare weights."""
    model = build_classifier(model_folder("bert"), 3, generator=torch.Generator().manual_seed(0))
    encoded, labels = toy_rows()
    rows = np.arange(len(labels))
    fit(model, NEFTune(alpha=15.0))
    assert hooks_of(model) == 0
    logits = predict(model, encoded, rows)
    bare = copy.deepcopy(model).eval()
    with torch.no_grad():
        for row in rows:
            ids = torch.from_numpy(encoded.ids[encoded.starts[row] : encoded.starts[row + 1]])
            alone = bare(ids.long()[None], torch.ones(1, len(ids), dtype=torch.long))
            assert np.allclose(alone[0].numpy(), logits[row], atol=1e-5)
    assert np.array_equal(logits, predict(model, encoded, rows))


# -- accumulation, loss scale, randomness, exceptions, passes ----------------------------------


@pytest.mark.parametrize(
    "strategy",
    [
        Plain(),
        FGM(epsilon=0.7, scope="example"),
        PGD(epsilon=0.5, scope="token"),
        FreeLB(init=0.0, step_size=0.4, max_norm=0.5),
    ],
)
def test_micro_batches_add_up_to_one_batch(strategy: Strategy, model: Classifier) -> None:
    """T27; the table scope is not among them: see the next test."""
    whole, parts = in_micro_batches(model)
    want = trained(strategy, model, whole)
    model.zero_grad()
    for micro in parts:
        drive(strategy(step_of(model, micro)), weight=len(micro) / len(whole))
    assert relative_error(gradients(model), want) <= EXACT


@pytest.mark.parametrize("name", ["fgm table", "pgd table, projected"])
def test_table_scope_has_a_budget_for_each_micro_batch(name: str, model: Classifier) -> None:
    """T27: the sum of what each micro-batch gives alone, whatever `.grad` holds by then."""
    strategy, by_hand = AGAINST_REFERENCE[name]
    whole, parts = in_micro_batches(model)
    want = [added(by_hand(model, micro), weight=len(micro) / len(whole)) for micro in parts]
    model.zero_grad()
    for micro in parts:
        drive(strategy(step_of(model, micro)), weight=len(micro) / len(whole))
    got = gradients(model)
    assert relative_error(got, added(*want)) <= EXACT
    assert relative_error(got, by_hand(model, whole)) > 1e-3, "the batch has another budget"


def in_micro_batches(model: Classifier) -> tuple[Batch, list[Batch]]:
    """Return a batch of six texts, and its texts as micro-batches of two, three and one."""
    lengths = (9, 4, 6, 2, 5, 7)
    whole = toy_batch(model, lengths=lengths)
    assert whole.labels is not None
    parts = []
    for rows in ([0, 1], [2, 3, 4], [5]):
        longest = max(lengths[row] for row in rows)
        ids = whole.input_ids[rows, :longest]
        parts.append(make_batch(ids, [lengths[row] for row in rows], whole.labels[rows]))
    return whole, parts


@pytest.mark.parametrize(
    "strategy",
    [FGM(), PGD(epsilon=0.5, scope="token"), FreeLB(max_norm=0.1), NEFTune(inner=FGM())],
)
def test_loss_scale_leaves_the_attack_as_it_is(strategy: Strategy, model: Classifier) -> None:
    """T28: fp16 training multiplies losses by 2**16; a power of two changes no digit."""
    batch = toy_batch(model)
    want_shifts = shifts_of(strategy, model, batch)
    want = trained(strategy, model, batch)
    model.zero_grad()
    step = step_of(model, batch, scale=lambda loss: loss * 2.0**16)
    drive(strategy(step), weight=2.0**16)
    assert all(torch.equal(a, b) for a, b in zip(step.shifts, want_shifts, strict=True))
    assert relative_error(added(gradients(model), weight=2.0**-16), want) <= TIGHT


def test_input_only_backwards_are_scaled_like_the_others(bert: Classifier) -> None:
    """T28: in fp16 an unscaled gradient would vanish before its direction is taken."""
    batch = toy_batch(bert)
    seen: list[Tensor] = []

    def scale(loss: Tensor) -> Tensor:
        seen.append(loss)
        return loss * 2.0**16

    plain, scaled = step_of(bert, batch), step_of(bert, batch, scale=scale)
    shift = plain.uniform()
    assert torch.equal(scaled.gradient(shift), plain.gradient(shift))
    assert seen[0].requires_grad, "the loss was scaled before its backward"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_directions_survive_gradients_whose_squares_do_not(scale: float, bert: Classifier) -> None:
    """In fp32 the square of 1e-30 is zero and that of 1e30 is infinite; the shift is the same."""
    model = bert.float()
    batch = toy_batch(model)
    want = shifts_of(FGM(scope="table"), model, batch)[1]
    model.zero_grad()
    step = step_of(model, batch)
    drive(FGM(scope="table")(step), weight=scale)
    assert torch.allclose(step.shifts[1], want, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("factor", [math.inf, math.nan])
@pytest.mark.parametrize("scope", ["table", "example", "token"])
def test_overflowed_gradients_give_no_shift(factor: float, scope: Any, model: Classifier) -> None:
    """T28: a gradient that is not finite is no direction; nothing that is NaN is added."""
    for strategy in (FGM(scope=scope), PGD(scope=scope, steps=1)):
        model.zero_grad()
        step = step_of(model, toy_batch(model))
        drive(strategy(step), weight=factor)
        assert not step.shifts[1].any(), "NaN counts as any"


def test_overflow_of_one_text_leaves_the_others_attacked(model: Classifier) -> None:
    """T28: with a budget for each text, the others keep theirs."""
    step = step_of(model, toy_batch(model))
    g = torch.randn(step.new_shift().shape, dtype=torch.float64, generator=noise())
    g[1, 2, 3] = math.inf
    direction = step.unit(g, "example")
    assert not direction[1].any()
    assert all(l2(direction[i]) == pytest.approx(1.0) for i in (0, 2, 3))
    assert not step.unit(g, "table").any()
    assert not step.unit(torch.zeros_like(g), "example").any()


def test_a_gradient_on_padding_steers_nothing(model: Classifier) -> None:
    step = step_of(model, toy_batch(model))
    g = torch.randn(step.new_shift().shape, dtype=torch.float64, generator=noise())
    loud = g.masked_fill(step.batch.attention_mask.unsqueeze(-1) == 0, 1e6)
    for scope in ("example", "token", "table"):
        assert torch.equal(step.unit(loud, scope), step.unit(g, scope))  # type: ignore[arg-type]


def hooks_of(model: nn.Module) -> int:
    return sum(
        len(m._forward_hooks) + len(m._forward_pre_hooks) + len(m._backward_hooks)
        for m in model.modules()
    )


@pytest.mark.parametrize("kind", KINDS)
def test_neftune_without_strength_trains_the_baselines_weights(
    kind: str, model_folder: ModelFolder
) -> None:
    """T29: with dropout on; the noise comes from its own generator. A real alpha does differ."""
    trained = []
    for strategy in (Plain(), NEFTune(alpha=0.0), NEFTune(alpha=5.0)):
        model = build_classifier(model_folder(kind), 3, generator=noise())
        assert any(isinstance(m, nn.Dropout) and m.p > 0 for m in model.modules())
        fit(model, strategy)
        trained.append(model.state_dict())
    baseline, zero, real = trained
    assert all(torch.equal(zero[name], weight) for name, weight in baseline.items())
    assert not all(torch.equal(real[name], weight) for name, weight in baseline.items())


def test_first_pass_has_the_baselines_dropout_whatever_the_strategy(
    model_folder: ModelFolder,
) -> None:
    """T29: the first pass of every micro-batch sees the same dropout in every arm.

    With a learning rate of 0 the weights stay, so the steps' logged losses can be compared.
    """
    losses = []
    for strategy in (Plain(), FGM(), PGD(), FreeLB(init=0.0), NEFTune(alpha=0.0, inner=FGM())):
        model = build_classifier(model_folder("bert"), 3, generator=noise())
        log = fit(model, strategy, lr=0.0)
        losses.append([line.loss for line in log.lines])
    assert len(set(losses[0])) > 1
    assert all(each == losses[0] for each in losses)


@pytest.mark.parametrize("scope", ["table", "example", "token"])
def test_attacks_of_length_zero_are_two_clean_passes(scope: Any, model: Classifier) -> None:
    """T29: exactly, since g + g is 2 g in floating point."""
    batch = toy_batch(model)
    twice = added(trained(Plain(), model, batch), weight=2.0)
    for strategy in (
        FGM(epsilon=0.0, scope=scope),
        PGD(epsilon=0.0, scope=scope),
        PGD(step_size=0.0, scope=scope),
    ):
        got = trained(strategy, model, batch)
        assert all(torch.equal(got[name], twice[name]) for name in twice)


def test_the_log_of_a_fold_counts_passes(model_folder: ModelFolder) -> None:
    model = build_classifier(model_folder("bert"), 3, generator=noise())
    log = fit(model, PGD(steps=3, epsilon=0.5))
    assert (log.forwards, log.backwards, log.input_backwards) == (4, 2, 2)
    assert log.shift_norm > 0


# -- encoders -----------------------------------------------------------------------------------


SIZES: dict[str, Any] = {
    "vocab_size": 30,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}
ROBERTA = {**SIZES, "pad_token_id": 1, "type_vocab_size": 1}
RELATIVE = {**SIZES, "relative_attention": True, "pos_att_type": ["c2p", "p2c"]}
# architectures that treat their embeddings each in its own way: transformers' name -> its config
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": SIZES,
    "Roberta": ROBERTA,
    "XLMRoberta": ROBERTA,
    "Albert": {**SIZES, "embedding_size": 16},
    "Electra": {**SIZES, "embedding_size": 16},
    "DistilBert": {
        "vocab_size": 30,
        "max_position_embeddings": 40,
        "pad_token_id": 0,
        "dim": 32,
        "n_layers": 2,
        "n_heads": 4,
        "hidden_dim": 48,
    },
    "Deberta": RELATIVE,
    "DebertaV2": {**RELATIVE, "position_buckets": 8, "norm_rel_ebd": "layer_norm"},
}


@pytest.mark.parametrize("kind", ENCODERS)
def test_embeddings_are_looked_up_once_in_every_architecture(kind: str, tmp_path: Path) -> None:
    """T34: a shift of zero changes no logit; a real one does; the attack is the reference's.

    Feeding looked-up embeddings back in (the usual way to shift them) normalises them twice in
    some encoders and loses RoBERTa's position ids; a shift of the lookup's output does neither.
    """
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**ENCODERS[kind])
    getattr(transformers, f"{kind}Model")(config).save_pretrained(tmp_path)
    model = toy_classifier(tmp_path)
    batch = toy_batch(model, extra_padding=2)
    step = step_of(model, batch)
    assert step.width == ENCODERS[kind].get("embedding_size", 32)
    plain = model(batch.input_ids, batch.attention_mask, None)
    assert plain.shape == (4, 3)
    assert torch.equal(step.logits(step.new_shift()), plain)
    assert torch.equal(step.logits(), plain)
    assert not torch.allclose(step.logits(step.uniform()), plain, atol=1e-3)
    got = trained(FGM(epsilon=0.7, scope="example"), model, batch)
    assert relative_error(got, reference.fgm(model, batch, epsilon=0.7, scope="example")) <= EXACT
    got = trained(FGM(epsilon=0.7, scope="table"), model, batch)
    assert relative_error(got, reference.fgm_table(model, batch, epsilon=0.7)) <= EXACT


def test_a_model_that_looks_its_tokens_up_twice_or_never_is_refused() -> None:
    class Twice(Linear):
        def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
            return super().forward(ids, mask) + super().forward(ids, mask)

    class Never(Linear):
        def forward(self, ids: Tensor, mask: Tensor, types: Tensor | None = None) -> Tensor:
            return self.table.weight[ids].sum((1, 2)).unsqueeze(1)

    for cls, calls in ((Twice, 2), (Never, 0)):
        model = cls()
        with pytest.raises(RuntimeError, match=f"{calls} times"):
            drive(FGM()(step_of(model, binary_batch(model))))
        assert hooks_of(model) == 0
