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

from competition_kit.strategies.alum import ALUM
from competition_kit.strategies.awp import AWP
from competition_kit.strategies.base import Strategy
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.fgsm import FGSM
from competition_kit.strategies.freelb import FreeLB
from competition_kit.strategies.neftune import NEFTune
from competition_kit.strategies.none import Plain
from competition_kit.strategies.pgd import PGD
from competition_kit.strategies.r3f import R3F
from competition_kit.strategies.sam import ASAM, SAM
from competition_kit.strategies.smart import SMART
from competition_kit.strategies.vat import VAT

__all__ = ["STRATEGIES", "Strategy"]

STRATEGIES: dict[str, type[Strategy]] = {
    "none": Plain,
    "neftune": NEFTune,
    "fgm": FGM,
    "fgsm": FGSM,
    "pgd": PGD,
    "freelb": FreeLB,
    "vat": VAT,
    "alum": ALUM,
    "smart": SMART,
    "r3f": R3F,
    "awp": AWP,
    "sam": SAM,
    "asam": ASAM,
}
