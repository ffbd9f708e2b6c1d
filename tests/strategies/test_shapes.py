"""Gradients equal their references whatever the shape of the batch: lengths, padding, repeats."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from competition_kit.data.encoding import Batch
from competition_kit.training.model import Classifier

from . import reference_regularisers as regularisers
from .test_reference import AGAINST_REFERENCE
from .tools import KINDS, relative_error, toy_batch, toy_classifier, trained

REGULARISERS: dict[str, Callable[[Classifier, Batch], Tensor]] = {
    "vat(alpha=1.5, epsilon=0.7, xi=0.1, steps=1)": lambda m, b: regularisers.reference_vat(
        m, b, 1.5, 0.7, 0.1, 1
    )
}
for _form, _settings in regularisers.SMOOTH.items():
    REGULARISERS[regularisers.spec_of("alum", _settings, alpha=1.5)] = lambda m, b, s=_settings: (
        regularisers.reference_alum(m, b, 1.5, s)[0]
    )

EXACT = 1e-9  # of drawn batches some have gradients that nearly cancel


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Classifier:
    return toy_classifier(model_folder(request.param))


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    name=st.sampled_from(sorted(AGAINST_REFERENCE)),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    extra_padding=st.integers(0, 5),
    seed=st.integers(0, 10**6),
    multi_label=st.booleans(),
)
def test_gradients_equal_the_reference_for_every_shape(
    model: Classifier,
    name: str,
    lengths: list[int],
    extra_padding: int,
    seed: int,
    multi_label: bool,
) -> None:
    strategy, by_hand = AGAINST_REFERENCE[name]
    batch = toy_batch(
        model, lengths=lengths, extra_padding=extra_padding, seed=seed, multi_label=multi_label
    )
    got = trained(strategy, model, batch)
    assert relative_error(got, by_hand(model, batch)) <= EXACT


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    spec=st.sampled_from(sorted(REGULARISERS)),
    lengths=st.lists(st.integers(1, 12), min_size=1, max_size=6),
    extra_padding=st.integers(0, 5),
    seed=st.integers(0, 10**6),
)
def test_regularisers_equal_their_references_for_every_shape(
    model: Classifier, spec: str, lengths: list[int], extra_padding: int, seed: int
) -> None:
    batch = toy_batch(model, lengths=lengths, extra_padding=extra_padding, seed=seed)
    got = trained(spec, model, batch)
    want = regularisers.weight_gradients(model, REGULARISERS[spec](model, batch))
    assert relative_error(got, want) <= EXACT
