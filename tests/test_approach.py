"""An arm as people write it."""

from __future__ import annotations

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from competition_kit.approach import Approach, parse_approach
from competition_kit.errors import InputError
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.neftune import NEFTune
from competition_kit.strategies.none import Plain
from competition_kit.tricks.averages import EMA
from competition_kit.tricks.rdrop import RegularisedDropout


@pytest.mark.parametrize(
    ("text", "expected", "said"),
    [
        ("none", Approach(Plain(), ()), "none"),
        ("fgm", Approach(FGM(), ()), "fgm"),
        ("ema", Approach(Plain(), (EMA(),)), "ema"),
        (
            "ema, fgm(epsilon=0.5), rdrop",
            Approach(FGM(epsilon=0.5), (RegularisedDropout(), EMA())),
            "fgm(epsilon=0.5), rdrop, ema",
        ),
        ("neftune+fgm", Approach(NEFTune(inner=FGM()), ()), "neftune+fgm"),
    ],
)
def test_an_arm_reads_as_one_string(text: str, expected: Approach, said: str):
    assert parse_approach(text) == expected
    assert str(expected) == said
    assert Approach.of(expected.spec, expected.tricks_spec) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("fgm, pgd", "2 strategies"),
        ("neftune+ema", "after a comma"),
        ("ema+fgm", "cannot go around"),
        ("ema, swa", "contradict"),
        ("fgn", "did you mean 'fgm'"),
        ("", "empty"),
        ("fgm(", "does not read"),
        ("ema, ema", "twice"),
    ],
)
def test_what_is_no_arm_is_refused(text: str, part: str):
    with pytest.raises(InputError, match=part.replace("(", r"\(")):
        parse_approach(text)


@given(
    st.sampled_from(["none", "fgm(epsilon=0.25)", "neftune(alpha=3.0)+pgd(steps=2)", "awp+freelb"]),
    st.lists(st.sampled_from(["ema(decay=0.9)", "rdrop", "llrd", "noisytune"]), unique=True),
)
def test_what_an_arm_is_called_reads_back_as_the_arm(adv: str, tricks: list[str]):
    approach = Approach.of(adv, ", ".join(tricks))
    assert parse_approach(str(approach)) == approach


def test_a_strategy_without_strength_is_announced(caplog: pytest.LogCaptureFixture):
    with caplog.at_level(logging.WARNING, "competition_kit"):
        parse_approach("fgm(epsilon=0)").check(2)
    assert "strength 0" in caplog.text
    caplog.clear()
    parse_approach("none").check(2)
    assert not caplog.text


def test_what_never_acts_is_refused():
    with pytest.raises(InputError, match="awp starts after epoch 3"):
        parse_approach("awp(start_epoch=3)").check(3)
    with pytest.raises(InputError, match="checkpoint_average over 3"):
        parse_approach("checkpoint_average(epochs=3)").check(2)
