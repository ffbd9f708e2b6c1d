"""Tricks that are no strategy: losses, starts, learning rates, gradient masks, averages.

Each stands in a file with the others of its seam, as a frozen dataclass whose docstring is its method
card, and in the dict below. The order of the dict is the order in which starts are applied. To add
one: the dataclass with the method of its seam (see `base`), one line here; the contract tests pick
it up. No module here imports torch when it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence

from competition_kit.errors import InputError
from competition_kit.specs import format_spec, name_of, parse_specs
from competition_kit.tricks.averages import EMA, SWA, CheckpointAverage
from competition_kit.tricks.base import Trick
from competition_kit.tricks.child_tuning import ChildTuning
from competition_kit.tricks.criteria import ClassWeights, FocalLoss, LabelSmoothing
from competition_kit.tricks.llrd import LayerwiseDecay
from competition_kit.tricks.mixout import Mixout
from competition_kit.tricks.multi_sample_dropout import MultiSampleDropout
from competition_kit.tricks.noisytune import NoisyTune
from competition_kit.tricks.pretrain import Pretrain
from competition_kit.tricks.rdrop import RegularisedDropout
from competition_kit.tricks.reinit import Reinit

__all__ = ["TRICKS", "Trick", "format_tricks", "in_order", "parse_tricks"]

TRICKS: dict[str, type[Trick]] = {
    "pretrain": Pretrain,
    "label_smoothing": LabelSmoothing,
    "class_weights": ClassWeights,
    "focal": FocalLoss,
    "rdrop": RegularisedDropout,
    "noisytune": NoisyTune,
    "reinit": Reinit,
    "mixout": Mixout,
    "multi_sample_dropout": MultiSampleDropout,
    "llrd": LayerwiseDecay,
    "child_tuning": ChildTuning,
    "ema": EMA,
    "swa": SWA,
    "checkpoint_average": CheckpointAverage,
}


def parse_tricks(text: str) -> tuple[Trick, ...]:
    """Return the tricks of a list such as "rdrop(alpha=0.5), ema, noisytune", as `in_order` does.

    Raises:
        InputError: for a name, argument or value that does not fit, or tricks that contradict.
    """
    return in_order(parse_specs(text, TRICKS, "trick"))


def in_order(tricks: Sequence[Trick]) -> tuple[Trick, ...]:
    """Return tricks in the dict's order.

    Raises:
        InputError: if one is there twice, or two contradict each other.
    """
    names = [name_of(trick, TRICKS) for trick in tricks]
    for position, (name, trick) in enumerate(zip(names, tricks, strict=True)):
        if name in names[:position]:
            raise InputError(f"trick {name!r} is there twice", remedy="keep one of them")
        for other in names:
            if other in trick.conflicts:
                raise InputError(
                    f"{name} and {other} contradict each other: {trick.conflicts[other]}",
                    remedy="drop one of them",
                )
    order = list(TRICKS.values())
    return tuple(sorted(tricks, key=lambda trick: order.index(type(trick))))


def format_tricks(tricks: tuple[Trick, ...]) -> str:
    """Return the list with every hyper-parameter; the inverse of `parse_tricks`."""
    return ", ".join(format_spec(trick, TRICKS) for trick in tricks)
