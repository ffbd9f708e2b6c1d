"""Spec strings: what they mean, that they read back, and that nothing else gets through."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from competition_kit.errors import InputError
from competition_kit.specs import format_spec, parse_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.strategies.fgm import FGM
from competition_kit.strategies.freelb import FreeLB
from competition_kit.strategies.neftune import NEFTune
from competition_kit.strategies.none import Plain
from competition_kit.strategies.pgd import PGD


def parse(text: str) -> Any:
    return parse_spec(text, STRATEGIES)


def refusal(text: str) -> str:
    """Return the message of the InputError that `text` must raise."""
    with pytest.raises(InputError) as caught:
        parse(text)
    message = str(caught.value)
    assert "\n" not in message
    return message


# -- meaning ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("none", Plain()),
        ("None", Plain()),
        ("none()", Plain()),
        ("fgm", FGM()),
        ("  fgm \n", FGM()),
        ("fgm()", FGM()),
        ("fgm(epsilon=0.5)", FGM(epsilon=0.5)),
        ("fgm(epsilon=1)", FGM(epsilon=1.0)),
        ("fgm(scope=example)", FGM(scope="example")),
        ("fgm( scope = 'example' , epsilon = 5e-1 )", FGM(epsilon=0.5, scope="example")),
        ("pgd(steps=3.0)", PGD(steps=3)),
        ('freelb(passes="steps+1")', FreeLB(passes="steps+1")),
        ("neftune", NEFTune()),
        ("neftune+none", NEFTune()),
        ("neftune+None", NEFTune()),
        ("neftune(alpha=1)+fgm", NEFTune(alpha=1.0, inner=FGM())),
        ("neftune + neftune + pgd(steps=2)", NEFTune(inner=NEFTune(inner=PGD(steps=2)))),
        ("neftune+(neftune+fgm)", NEFTune(inner=NEFTune(inner=FGM()))),
    ],
)
def test_a_spec_means(text: str, means: object) -> None:
    assert parse(text) == means


def test_numbers_get_the_type_of_their_field() -> None:
    assert isinstance(parse("fgm(epsilon=1)").epsilon, float)
    assert isinstance(parse("pgd(steps=2.0)").steps, int)


def test_format_says_every_setting() -> None:
    assert format_spec(FGM(), STRATEGIES) == (
        "fgm(epsilon=1.0, scope='table', objective='sum', dropout='fresh')"
    )
    assert format_spec(Plain(), STRATEGIES) == "none"
    assert (
        format_spec(NEFTune(alpha=2.0, inner=FGM(epsilon=0.5)), STRATEGIES)
        == "neftune(alpha=2.0, noise='uniform', length='true')+"
        "fgm(epsilon=0.5, scope='table', objective='sum', dropout='fresh')"
    )
    assert "+" not in format_spec(NEFTune(), STRATEGIES)


# -- round trip ---------------------------------------------------------------------------------


def values_of(hint: Any, name: str) -> st.SearchStrategy[Any]:
    if hint is float and name.startswith("beta"):
        return st.floats(min_value=0.0, max_value=1.0)
    if name == "xi":
        return st.floats(min_value=1e-3, max_value=10.0)
    if hint is float:
        return st.floats(min_value=0.0, allow_nan=False, allow_infinity=False)
    if hint is int:
        return st.integers(min_value=1, max_value=10**9)
    assert get_origin(hint) is Literal
    return st.sampled_from(get_args(hint))


def settings_of(cls: type) -> st.SearchStrategy[dict[str, Any]]:
    """Return any valid settings of a strategy, each given or left out."""
    hints = get_type_hints(cls)
    fields = [each.name for each in dataclasses.fields(cls) if each.name != "inner"]
    return st.fixed_dictionaries(
        {}, optional={name: values_of(hints[name], name) for name in fields}
    )


@st.composite
def built(draw: st.DrawFn) -> Any:
    """Return any strategy, inside up to three wrappers."""
    cls = STRATEGIES[draw(st.sampled_from(sorted(STRATEGIES)))]
    strategy = cls(**draw(settings_of(cls)))
    for _ in range(draw(st.integers(0, 3))):
        strategy = NEFTune(**draw(settings_of(NEFTune)), inner=strategy)
    return strategy


@given(built())
@settings(max_examples=150, deadline=None)
def test_any_strategy_reads_back_from_its_spec(strategy: Any) -> None:
    text = format_spec(strategy, STRATEGIES)
    assert parse(text) == strategy
    assert format_spec(parse(text), STRATEGIES) == text


@given(st.data())
@settings(max_examples=100, deadline=None)
def test_what_a_spec_leaves_out_stays_at_its_default(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(STRATEGIES)))
    given_settings = data.draw(settings_of(STRATEGIES[name]))
    order = data.draw(st.permutations(sorted(given_settings)))
    text = f"{name}({', '.join(f'{key} = {given_settings[key]!r}' for key in order)})"
    assert parse(text) == STRATEGIES[name](**given_settings)


# -- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("fgn", "unknown strategy 'fgn', did you mean 'fgm'?"),
        ("FGM", "unknown strategy 'FGM'"),
        ("freelbb(steps=2)", "unknown strategy 'freelbb', did you mean 'freelb'?"),
        ("neftun+fgm", "unknown strategy 'neftun', did you mean 'neftune'?"),
        ("zzz", "unknown strategy 'zzz'; known: none, neftune, fgm, fgsm, pgd"),
        ("fgm(epsilom=1)", "fgm has no argument 'epsilom', did you mean 'epsilon'?"),
        ("fgm(zzz=1)", "fgm has no argument 'zzz'; known: epsilon, scope"),
        ("none(epsilon=1)", "none has no argument 'epsilon'; it takes none"),
        ("neftune(inner=fgm)", "neftune has no argument 'inner'"),
        ("fgm(epsilon='1')", "fgm: epsilon is '1'; it takes a finite number"),
        ("fgm(epsilon=True)", "fgm: epsilon is True; it takes a finite number"),
        ("fgm(epsilon=nan)", "fgm: epsilon is 'nan'; it takes a finite number"),
        ("fgm(epsilon=1e999)", "fgm: epsilon is inf; it takes a finite number"),
        ("fgm(epsilon=1j)", "fgm: epsilon is 1j; it takes a finite number"),
        ("fgm(epsilon=None)", "fgm: epsilon is None; it takes a finite number"),
        ("fgm(epsilon=[1])", "fgm: epsilon is [1]; it takes a finite number"),
        ("pgd(steps=2.5)", "pgd: steps is 2.5; it takes a whole number"),
        ("pgd(steps=True)", "pgd: steps is True; it takes a whole number"),
        ("pgd(steps='3')", "pgd: steps is '3'; it takes a whole number"),
        ("fgm(scope=text)", "fgm: scope is 'text'; it takes one of table, example, token"),
        ("fgm(scope=1)", "fgm: scope is 1; it takes one of table, example, token"),
        ("fgm(scope=[])", "fgm: scope is []; it takes one of"),
        ("fgm(epsilon=-1)", "fgm: epsilon must be at least 0, got -1"),
        ("pgd(step_size=-0.5)", "pgd: step_size must be at least 0, got -0.5"),
        ("pgd(steps=0)", "pgd: steps must be at least 1, got 0"),
        ("neftune(alpha=-1)+fgm", "neftune: alpha must be at least 0"),
        ("neftune+fgm(epsilon=-1)", "fgm: epsilon must be at least 0"),
        ("fgm(1)", "arguments need their names"),
        ("fgm(*a)", "arguments need their names"),
        ("fgm(**a)", "'**' is not possible here"),
        ("fgm(epsilon=1+1)", "fgm(epsilon=1 + 1) is no plain value"),
        ("fgm(epsilon=a.b)", "is no plain value"),
        ("fgm+neftune", "'fgm' cannot go around another strategy"),
        ("none+fgm", "'none' cannot go around another strategy"),
        ("fgm-pgd", "is no strategy; write name or name(key=value)"),
        ("'fgm'", "is no strategy"),
        ("3", "is no strategy"),
        ("a.fgm()", "is no strategy"),
        ("fgm()()", "is no strategy"),
        ("neftune+", "does not read as a strategy"),
        ("", "does not read as a strategy"),
        ("fgm(", "does not read as a strategy"),
        ("fgm pgd", "does not read as a strategy"),
        ("fgm;pgd", "does not read as a strategy"),
        ("x = fgm", "does not read as a strategy"),
        ("fgm\0", "does not read as a strategy"),
        ("\ud800", "does not read as a strategy"),
    ],
)
def test_a_refusal_says_what_is_wrong(text: str, says: str) -> None:
    assert says in refusal(text)


def test_only_wrappers_are_offered_before_a_plus() -> None:
    assert "only neftune, awp, sam, asam can stand before a '+'" in refusal("pgd+fgm")


def test_an_argument_given_twice_is_refused() -> None:
    """Python refuses it in a call; taking the last one silently would hide a slip."""
    assert "epsilon" in refusal("fgm(epsilon=0.1, epsilon=5)")


@pytest.mark.parametrize("text", ["fgm(epsilon={})", "fgm(epsilon=-{})", "pgd(steps={})"])
def test_whole_numbers_beyond_floats_are_refused(text: str) -> None:
    """`float(10**400)` raises OverflowError, `int` of 5000 digits ValueError."""
    for digits in (400, 5000):
        refusal(text.format("1" + "0" * digits))


@pytest.mark.parametrize(
    "text",
    [
        "-" * 5000 + "1",
        "-" * 100_000 + "1",
        "(" * 1000 + "fgm" + ")" * 1000,
        "neftune+" * 5000 + "fgm",
        "fgm(epsilon=" + "-" * 2000 + "1)",
        "fgm(epsilon=" + "[" * 150 + "]" * 150 + ")",
        "fgm(scope=" + "a." * 3000 + "b)",
    ],
    ids=["minuses", "many minuses", "parentheses", "pluses", "argument", "lists", "attributes"],
)
def test_text_nested_too_deeply_is_refused(text: str) -> None:
    """The parser gives up with RecursionError or MemoryError; users must not see those."""
    refusal(text)


@pytest.mark.parametrize("text", ["1if 1else 2", "fgm(epsilon=1if 1else 2)", r"fgm(scope='\d')"])
def test_a_refusal_is_not_accompanied_by_pythons_own_warnings(text: str) -> None:
    """`ast.parse` warns of code that reads oddly; a spec is no code, and the refusal says enough."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        refusal(text)
    assert not caught


@pytest.mark.parametrize(
    "code",
    [
        "__import__('pathlib').Path({path!r}).touch()",
        "open({path!r}, 'w')",
        "[open({path!r}, 'w') for _ in '1']",
        "(lambda: open({path!r}, 'w'))()",
        "f\"{{open({path!r}, 'w')}}\"",
    ],
)
@pytest.mark.parametrize(
    "around", ["{}", "fgm(epsilon={})", "fgm(scope={})", "neftune+{}", "{}+fgm", "fgm(**{})"]
)
def test_no_code_is_run(code: str, around: str, tmp_path: Path) -> None:
    path = tmp_path / "made"
    refusal(around.format(code.format(path=str(path))))
    assert not path.exists()


def test_reading_specs_loads_no_torch() -> None:
    """Typing mistakes are told at once, not after seconds of imports."""
    code = (
        "import sys; from competition_kit.specs import parse_spec; "
        "from competition_kit.strategies import STRATEGIES; "
        "parse_spec('neftune+fgm', STRATEGIES); assert 'torch' not in sys.modules"
    )
    root = Path(__file__).resolve().parents[1]
    subprocess.run([sys.executable, "-c", code], check=True, cwd=root, timeout=60)


WORDS = ("epsilon", "steps", "scope", "table", "inner", "None", "lambda", "x", "1e999", "9" * 400)
SIGNS = ("**", "'\\d'", "0x", "1_0", *"()[]{}=+-*.,:'\"\\ \n#!0123456789e_")
PIECES = st.sampled_from([*STRATEGIES, *WORDS, *SIGNS])


@given(st.one_of(st.text(), st.lists(PIECES, max_size=15).map("".join)))
@settings(max_examples=500, deadline=None)
@example("fgm(epsilon=" + "9" * 400 + ")")
@example("1if 1else 2")
@pytest.mark.filterwarnings("ignore::SyntaxWarning")  # has its own test above
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_any_text_gives_a_strategy_or_an_input_error(text: str) -> None:
    try:
        strategy = parse(text)
    except InputError:
        return
    assert parse(format_spec(strategy, STRATEGIES)) == strategy


@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary()),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3), st.dictionaries(st.text(), inner, max_size=3)
        ),
        max_leaves=5,
    ),
    st.sampled_from(["fgm(epsilon={})", "fgm(scope={})", "pgd(steps={})", "neftune(noise={})"]),
)
@settings(max_examples=300, deadline=None)
def test_any_value_fits_its_field_or_is_refused(value: object, around: str) -> None:
    try:
        strategy = parse(around.format(repr(value)))
    except InputError:
        return
    key = around.partition("(")[2].partition("=")[0]
    assert getattr(strategy, key) == value  # no field takes the words nan and inf
    assert not isinstance(value, bool)
