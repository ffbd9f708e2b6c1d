"""The small encoders of these tests, in float64 and without dropout."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from competition_kit.training.model import Classifier

from .tools import KINDS, toy_classifier


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest, model_folder: Callable[[str], Path]) -> Classifier:
    return toy_classifier(model_folder(request.param))


@pytest.fixture
def bert(model_folder: Callable[[str], Path]) -> Classifier:
    return toy_classifier(model_folder("bert"))
