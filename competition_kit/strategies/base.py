"""The contract between a strategy and the training loop."""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from torch import Tensor

    from competition_kit.training.step import Step

__all__ = ["Strategy", "check_at_least", "layers", "remarks", "start_epoch"]


@runtime_checkable
class Strategy(Protocol):
    """A frozen dataclass of hyper-parameters with one generator method."""

    @property
    def strength(self) -> float:
        """Zero if and only if these settings are known to change nothing.

        The loop raises when a strategy with a strength never shifted anything. Inside a wrapper it
        has to do so by itself: by passes at a shift of its own, or said by `Step.acted`.
        """
        ...

    def __call__(self, step: Step) -> Generator[Tensor, None, None]:
        """Yield the scalar losses whose gradients sum to this step's gradient."""
        ...


def check_at_least(least: float, **values: float) -> None:
    """Raise ValueError for the first hyper-parameter below its least value."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name} must be at least {least:g}, got {value:g}")


def start_epoch(strategy: Strategy) -> float:
    """Return when a strategy or one inside it begins to act, the latest of them."""
    return max(getattr(layer, "start_epoch", 0.0) for layer in layers(strategy))


def layers(strategy: Strategy) -> list[Strategy]:
    """Return a strategy and those inside it, from the outside in."""
    inner = getattr(strategy, "inner", None)
    return [strategy] if inner is None else [strategy, *layers(inner)]


def remarks(strategy: Strategy) -> list[str]:
    """Return what a strategy has to say about its settings before a run (see `PGD.remarks`)."""
    found: list[str] = getattr(strategy, "remarks", list)()
    return found
