"""Weights that are moved for a while."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from competition_kit.training.weights import moved


@pytest.fixture
def layer() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2)


def offsets(layer: nn.Linear) -> list[Tensor]:
    return [torch.randn_like(weight) for weight in layer.parameters()]


def test_weights_move_and_come_back_bit_for_bit(layer: nn.Linear) -> None:
    before = [weight.detach().clone() for weight in layer.parameters()]
    by = offsets(layer)
    expected = [weight + offset for weight, offset in zip(before, by, strict=True)]

    with moved(list(layer.parameters()), by):
        assert all(map(torch.equal, layer.parameters(), expected))
        layer(torch.ones(3)).sum().backward()

    assert all(map(torch.equal, layer.parameters(), before))
    assert layer.weight.grad is not None, "gradients found inside stay"


def test_weights_come_back_from_an_error(layer: nn.Linear) -> None:
    before = layer.weight.detach().clone()

    with pytest.raises(ValueError, match="inside"), moved([layer.weight], offsets(layer)[:1]):
        raise ValueError("inside")

    assert torch.equal(layer.weight, before)


@pytest.mark.parametrize("made", ["before", "inside"])
def test_a_graph_does_not_go_on_with_other_weights(layer: nn.Linear, made: str) -> None:
    square = nn.Linear(3, 3)

    def loss() -> Tensor:  # the gradient of `square` needs the weight of `layer`
        return layer(square(torch.ones(3))).sum()

    value = loss() if made == "before" else None
    with moved([layer.weight], offsets(layer)[:1]):
        if value is not None:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                value.backward()
        value = loss()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        value.backward()
