"""Training strategies: which forward and backward passes make a step's gradient.

A strategy is a frozen dataclass whose fields are its hyper-parameters, and one generator method.
It *yields scalar losses; the loop back-propagates each one before it resumes the generator*:

    with closing(strategy(Step(model, batch, objective, generator))) as losses:
        for loss in losses:
            scaler.scale(loss * weight).backward()

so after a `yield` the gradients are there to read, and the loop stays the only owner of backward,
loss scaling, accumulation, clipping and the optimizer. A strategy never calls any of them, and
touches no weight: it shifts the output of the word embeddings through `Step`. Wrappers have a
field `inner` and do their work around `yield from self.inner(step)`: "neftune+fgm".

To add a strategy: one file with the dataclass (its docstring is the method card), and one line
here. The contract tests (`tests/strategies/test_contract.py`) pick it up from the dict. No module
in this package imports torch when it is loaded, so that specs are checked before anything slow.
"""

from competition_kit.strategies.base import Strategy
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.freelb import FreeLB
from competition_kit.strategies.neftune import NEFTune
from competition_kit.strategies.none import Plain
from competition_kit.strategies.pgd import PGD

__all__ = ["STRATEGIES", "Strategy"]

STRATEGIES: dict[str, type[Strategy]] = {
    "none": Plain,
    "neftune": NEFTune,
    "fgm": FGM,
    "pgd": PGD,
    "freelb": FreeLB,
}
