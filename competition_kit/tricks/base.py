"""The seams at which a trick that is no strategy takes part in training.

A trick is a frozen dataclass whose fields are its hyper-parameters, with one method for its seam.
`conflicts` names what it cannot stand beside, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, TypeAlias, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    import torch

    from competition_kit.training.averaging import WeightAverage
    from competition_kit.training.model import Classifier, EncoderModel
    from competition_kit.training.objectives import Criterion
    from competition_kit.training.step import Objective

__all__ = [
    "Averages",
    "ChangesCriterion",
    "ChangesModel",
    "ChangesObjective",
    "Gradients",
    "GroupsParameters",
    "MasksGradients",
    "Trick",
]


# weights -> the gradient of each batch's mean loss with respect to them, batch by batch
Gradients: TypeAlias = "Callable[[Sequence[torch.nn.Parameter]], Iterator[list[torch.Tensor]]]"


class Trick(Protocol):
    """What all tricks have."""

    conflicts: ClassVar[dict[str, str]]


@runtime_checkable
class ChangesCriterion(Protocol):
    """Changes the loss of one example."""

    def criterion(self, plain: Criterion, labels: np.ndarray, classes: int) -> Criterion:
        """Return the criterion; `labels` are those of the fold's training rows only."""
        ...


@runtime_checkable
class ChangesObjective(Protocol):
    """Changes which passes make the loss at one point."""

    def objective(self, criterion: Criterion) -> Objective:
        """Return the objective that uses this criterion."""
        ...


@runtime_checkable
class ChangesModel(Protocol):
    """Changes the model once, before the optimizer exists."""

    def prepare(self, model: Classifier, generator: torch.Generator) -> None:
        """Change the model in place (on the CPU); random numbers from this generator alone."""
        ...


@runtime_checkable
class GroupsParameters(Protocol):
    """Decides the optimizer's parameter groups."""

    def groups(self, model: EncoderModel, lr: float, weight_decay: float) -> list[dict[str, Any]]:
        """Return groups in which every trainable parameter stands exactly once."""
        ...


@runtime_checkable
class MasksGradients(Protocol):
    """Changes gradients before they are clipped."""

    def mask(self, model: EncoderModel, gradients: Gradients) -> Callable[[torch.Generator], None]:
        """Return what is called with each optimizer step's generator; it changes `.grad` in place.

        `gradients` goes once through the fold's training rows (no update), for masks that look
        first.
        """
        ...


@runtime_checkable
class Averages(Protocol):
    """Averages weights; evaluation uses the average."""

    def average(self, model: EncoderModel) -> WeightAverage:
        """Return the average, at its start."""
        ...

    def is_due(self, step: int, total_steps: int, steps_per_epoch: int, skipped: bool) -> bool:
        """Return whether the weights after this optimizer step (from 1) are taken in.

        Args:
            skipped: whether the step overflowed in fp16 and left the weights as they were.
        """
        ...
