"""What is done beyond the baseline: one strategy and any tricks, as people write and read them."""

from __future__ import annotations

import logging
from dataclasses import dataclass

from competition_kit.errors import InputError
from competition_kit.specs import format_spec, name_of, parse_spec, parse_specs
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.strategies.base import layers, remarks
from competition_kit.strategies.none import Plain
from competition_kit.tricks import TRICKS, Trick, format_tricks, in_order, parse_tricks
from competition_kit.tricks.averages import CheckpointAverage

__all__ = ["Approach", "combined", "parse_approach"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Approach:
    """A strategy and tricks; both empty make the baseline."""

    strategy: Strategy
    tricks: tuple[Trick, ...]

    @classmethod
    def of(cls, adv: str, tricks: str) -> Approach:
        """Read the two strings of `--adv` and `--tricks`.

        Raises:
            InputError: for a name, argument or value that does not fit, or tricks that contradict.
        """
        return cls(parse_spec(adv, STRATEGIES), parse_tricks(tricks))

    @property
    def spec(self) -> str:
        """The strategy with every hyper-parameter."""
        return format_spec(self.strategy, STRATEGIES)

    @property
    def tricks_spec(self) -> str:
        """The tricks with every hyper-parameter."""
        return format_tricks(self.tricks)

    def __str__(self) -> str:
        """Say it without what is at its default; `parse_approach` reads it back."""
        parts = [format_spec(trick, TRICKS, defaults=False) for trick in self.tricks]
        if not parts or not isinstance(self.strategy, Plain):
            parts.insert(0, format_spec(self.strategy, STRATEGIES, defaults=False))
        return ", ".join(parts)

    def check(self, epochs: int) -> None:
        """Warn of what is odd; refuse what would begin only after the last epoch.

        Raises:
            InputError: for a part that would be on and do nothing.
        """
        for remark in remarks(self.strategy):
            log.warning(remark)
        if self.strategy.strength == 0 and not isinstance(self.strategy, Plain):
            log.warning(
                "%s has strength 0: it moves nothing; what its passes still do beside the "
                "baseline is a second look at the same batch",
                self.spec,
            )
        for layer in layers(self.strategy):
            start = getattr(layer, "start_epoch", 0.0)
            if start >= epochs:
                name = name_of(layer, STRATEGIES)
                raise InputError(
                    f"{name} starts after epoch {start:g}, and --epochs is {epochs}",
                    remedy=f"use {name}(start_epoch=0), or more --epochs",
                )
        for trick in self.tricks:
            if isinstance(trick, CheckpointAverage) and trick.epochs > epochs:
                raise InputError(
                    f"checkpoint_average over {trick.epochs} epochs, and --epochs is {epochs}",
                    remedy=f"use checkpoint_average(epochs={epochs}) or less, or more --epochs",
                )


def parse_approach(text: str) -> Approach:
    """Read one string with at most one strategy and any tricks: "neftune+fgm, ema(decay=0.99)".

    Raises:
        InputError: for a name, argument or value that does not fit, or parts that contradict.
    """
    parts = parse_specs(text, {**STRATEGIES, **TRICKS}, "strategy or trick")
    if not parts:
        raise InputError("an arm is empty", remedy='write for instance fgm, "neftune+fgm" or ema')
    strategies = [part for part in parts if type(part) in STRATEGIES.values()]
    if len(strategies) > 1:
        raise InputError(
            f"{text!r} has {len(strategies)} strategies",
            remedy="keep one, or nest them: neftune+fgm",
        )
    for strategy in strategies:
        for layer in layers(strategy):
            if type(layer) in TRICKS.values():
                raise InputError(
                    f"{text!r}: a trick stands after a comma, not after '+'",
                    remedy='write "fgm, ema"',
                )
    tricks = [part for part in parts if type(part) in TRICKS.values()]
    return Approach(strategies[0] if strategies else Plain(), in_order(tricks))


def combined(one: Approach, other: Approach) -> Approach:
    """Return two approaches at once; of two strategies one must go around the other.

    Raises:
        InputError: if they contradict each other.
    """
    tricks = [part for part in (one.tricks_spec, other.tricks_spec) if part]
    strategies = [
        approach.spec for approach in (one, other) if not isinstance(approach.strategy, Plain)
    ]
    refusals = []
    for order in dict.fromkeys((tuple(strategies), tuple(reversed(strategies)))):
        try:
            return Approach.of("+".join(order) or "none", ", ".join(tricks))
        except InputError as error:
            refusals.append(error)
    raise refusals[0]
