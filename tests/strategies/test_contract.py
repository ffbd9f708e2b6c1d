"""What every strategy promises, over `STRATEGIES` x {bert, roberta}.

A new strategy is tested as soon as it is listed there; it needs one entry in `KNOWN` below.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
import math
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import Tensor, nn

from competition_kit.data.encoding import Batch
from competition_kit.errors import InputError
from competition_kit.specs import format_spec, parse_spec
from competition_kit.strategies import STRATEGIES, Strategy
from competition_kit.training.model import Classifier
from competition_kit.training.objectives import Once
from competition_kit.training.step import Step

from .tools import (
    SEED,
    Gradients,
    Linear,
    added,
    binary_batch,
    drive,
    gradients,
    identical,
    padded_batch,
    relative_error,
    set_dropout,
    step_of,
    trained,
)


@dataclass(frozen=True)
class Known:
    """What the contract cannot read off a strategy.

    Attributes:
        weight: sum of the weights of its passes; at zero strength the gradient is this many times
            the clean one.
        zeros: settings at which it must change nothing; empty if it never does anything.
        sane: settings that visibly change the gradient of a tiny encoder.
        noisy: it draws noise at the sane settings.
        noise_first: its noise stands in the first pass already.
        moves_weights: it moves weights, so that padding's own embedding moves too.
        still: settings at which it moves nothing at all (a regulariser of weight 0 still looks).
        climbs: settings with a small strength at which its last pass has a higher loss than its
            first; None for what is no attack.
    """

    weight: float
    zeros: tuple[dict[str, Any], ...]
    sane: dict[str, Any]
    noisy: bool = False
    noise_first: bool = False
    moves_weights: bool = False
    still: tuple[dict[str, Any], ...] = ()
    climbs: dict[str, Any] | None = None


KNOWN: dict[str, Known] = {
    "none": Known(weight=1, zeros=({},), still=({},), sane={}),
    "neftune": Known(
        weight=1,
        zeros=({"alpha": 0.0},),
        still=({"alpha": 0.0},),
        sane={"alpha": 5.0},
        noisy=True,
        noise_first=True,
    ),
    "fgm": Known(
        weight=2,
        zeros=({"epsilon": 0.0},),
        still=({"epsilon": 0.0},),
        sane={"epsilon": 0.7},
        climbs={"epsilon": 0.01},
    ),
    "fgsm": Known(
        weight=2,
        zeros=({"epsilon": 0.0},),
        still=({"epsilon": 0.0},),
        sane={"epsilon": 0.05},
        climbs={"epsilon": 0.0005},
    ),
    "pgd": Known(
        weight=2,
        zeros=({"epsilon": 0.0}, {"step_size": 0.0}),
        still=({"epsilon": 0.0}, {"step_size": 0.0}),
        sane={"epsilon": 0.5},
        climbs={"epsilon": 0.01, "step_size": 0.004},
    ),
    "freelb": Known(
        weight=1,
        zeros=({"init": 0.0, "step_size": 0.0}, {"init": 0.0, "steps": 1}),
        still=({"init": 0.0, "step_size": 0.0},),
        sane={"init": 0.3, "step_size": 0.3, "max_norm": 0.4},
        noisy=True,
        noise_first=True,
        climbs={"init": 0.0, "step_size": 0.005},
    ),
    "vat": Known(
        weight=1,
        zeros=({"alpha": 0.0}, {"epsilon": 0.0}),
        sane={"alpha": 20.0, "epsilon": 2.0},
        noisy=True,
    ),
    "alum": Known(
        weight=1,
        zeros=({"alpha": 0.0}, {"epsilon": 0.0}),
        sane={"alpha": 20.0, "epsilon": 0.5, "step_size": 0.5},
        noisy=True,
    ),
    "smart": Known(
        weight=1,
        zeros=({"alpha": 0.0, "mu": 0.0}, {"epsilon": 0.0, "mu": 0.0}),
        sane={"alpha": 20.0, "mu": 0.0, "epsilon": 0.5, "step_size": 0.5},
        noisy=True,
    ),
    "r3f": Known(
        weight=1,
        zeros=({"alpha": 0.0}, {"epsilon": 0.0}),
        sane={"alpha": 20.0, "epsilon": 0.3},
        noisy=True,
    ),
    "awp": Known(
        weight=1,
        zeros=({"gamma": 0.0, "start_epoch": 0.0},),
        still=({"gamma": 0.0, "start_epoch": 0.0},),
        sane={"gamma": 0.1, "start_epoch": 0.0},
        moves_weights=True,
        climbs={"gamma": 0.001, "start_epoch": 0.0},
    ),
    "sam": Known(
        weight=1,
        zeros=({"rho": 0.0},),
        still=({"rho": 0.0},),
        sane={"rho": 0.5},
        moves_weights=True,
        climbs={"rho": 0.01},
    ),
    "asam": Known(
        weight=1,
        zeros=({"rho": 0.0},),
        still=({"rho": 0.0},),
        sane={"rho": 2.0},
        moves_weights=True,
        climbs={"rho": 0.01},
    ),
}

WRAPPERS = [
    name
    for name, cls in STRATEGIES.items()
    if "inner" in {each.name for each in dataclasses.fields(cls)}  # type: ignore[arg-type]
]


def hints_of(cls: type) -> dict[str, Any]:
    """Return the types of a strategy's hyper-parameters."""
    hints = get_type_hints(cls)
    return {each.name: hints[each.name] for each in dataclasses.fields(cls) if each.name != "inner"}


OPTIONS = [
    (name, key, value)
    for name, cls in STRATEGIES.items()
    for key, hint in hints_of(cls).items()
    if get_origin(hint) is Literal
    for value in get_args(hint)
]


@pytest.fixture
def batch(model: Classifier) -> Batch:
    return padded_batch(model)


@pytest.fixture(params=STRATEGIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def sane(name: str, **settings: Any) -> Strategy:
    return STRATEGIES[name](**{**KNOWN[name].sane, **settings})


def choices(name: str) -> list[dict[str, Any]]:
    """Return one settings dict for each value of each option of a strategy."""
    return [{key: value} for listed, key, value in OPTIONS if listed == name] or [{}]


def clean_gradients(model: Classifier, batch: Batch) -> Gradients:
    """Return the gradient of the loss, without a strategy or a step."""
    model.zero_grad()
    assert batch.labels is not None
    logits = model(batch.input_ids, batch.attention_mask, batch.type_ids)
    nn.functional.cross_entropy(logits, batch.labels).backward()
    return gradients(model)


class Before:
    """The state of a model and of torch that no strategy may change."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.weights = copy.deepcopy(model.state_dict())
        self.pointers = [p.data_ptr() for p in model.parameters()]
        self.random = torch.get_rng_state()

    def check(self) -> None:
        now = self.model.state_dict()
        assert now.keys() == self.weights.keys()
        assert all(torch.equal(now[name], weight) for name, weight in self.weights.items())
        assert [p.data_ptr() for p in self.model.parameters()] == self.pointers
        assert all(p.requires_grad for p in self.model.parameters())
        for module in self.model.modules():
            assert module.training
            for kind in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks"):
                assert not getattr(module, kind)
            assert "forward" not in vars(module), "a patched forward"
        for parameter in self.model.parameters():
            assert not parameter._backward_hooks
        assert torch.is_grad_enabled()
        # dropout is 0 here, so whoever drew from the global generator disturbs dropout elsewhere
        assert torch.equal(torch.get_rng_state(), self.random)


# -- declaration --------------------------------------------------------------------------------


def test_every_listed_strategy_has_an_entry_here() -> None:
    assert KNOWN.keys() == STRATEGIES.keys()


def test_a_strategy_is_a_frozen_dataclass_with_keyword_only_fields(name: str) -> None:
    cls = STRATEGIES[name]
    assert dataclasses.is_dataclass(cls)
    strategy = sane(name)
    assert isinstance(strategy, Strategy)
    assert all(each.kw_only for each in dataclasses.fields(cls))
    with pytest.raises(TypeError):
        cls(1.0)  # type: ignore[call-arg]
    for each in dataclasses.fields(cls):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(strategy, each.name, getattr(strategy, each.name))
    assert cls() == cls(), "all fields have defaults"
    assert hash(strategy) == hash(sane(name))


def test_every_hyper_parameter_has_a_type_that_specs_can_check(name: str) -> None:
    for key, hint in hints_of(STRATEGIES[name]).items():
        assert hint in (float, int) or get_origin(hint) is Literal, key


def test_the_docstring_is_a_method_card(name: str) -> None:
    card = inspect.getdoc(STRATEGIES[name])
    assert card is not None
    assert "Formula:" in card
    assert "Cost:" in card
    if name != "none":
        for heading in ("Paper:", "Sane range:", "Interactions:", "Public bugs:"):
            assert heading in card
        assert "arXiv" in card


@pytest.mark.parametrize(("listed", "key", "value"), OPTIONS)
def test_the_method_card_names_every_choice(listed: str, key: str, value: str) -> None:
    """A default may go without saying; what somebody has to ask for may not."""
    if value == getattr(STRATEGIES[listed](), key):
        return
    card = inspect.getdoc(STRATEGIES[listed]) or ""
    options = card.partition("Options:")[2].partition("Cost:")[0]
    assert f'"{value}"' in options


def test_numbers_below_zero_are_refused(name: str) -> None:
    for key, hint in hints_of(STRATEGIES[name]).items():
        if hint is float:
            with pytest.raises(ValueError, match=f"{key} must be at least"):
                STRATEGIES[name](**{key: -0.1})
            with pytest.raises(ValueError, match=key):
                STRATEGIES[name](**{key: math.nan})
        elif hint is int:
            with pytest.raises(ValueError, match=f"{key} must be at least 1"):
                STRATEGIES[name](**{key: 0})


# -- state --------------------------------------------------------------------------------------


def test_a_step_changes_nothing_but_gradients(name: str, model: Classifier, batch: Batch) -> None:
    before = Before(model)
    values = drive(sane(name)(step_of(model, batch)))
    assert values and all(math.isfinite(value) for value in values)
    before.check()
    assert all(p.grad is not None for n, p in model.named_parameters() if "pooler" not in n)


def test_every_yield_is_a_scalar_with_a_graph(name: str, model: Classifier, batch: Batch) -> None:
    for loss in sane(name)(step_of(model, batch)):
        assert loss.shape == ()
        assert loss.requires_grad
        loss.backward()


class Stop(Exception):
    pass


def test_an_exception_at_any_yield_leaves_the_model_alone(
    name: str, model: Classifier, batch: Batch
) -> None:
    count = len(drive(sane(name)(step_of(model, batch))))
    before = Before(model)
    for at in range(count):
        losses = sane(name)(step_of(model, batch))
        for _ in range(at):
            next(losses).backward()
        next(losses)
        with pytest.raises(Stop):
            losses.throw(Stop())
        before.check()


def test_an_exception_in_any_pass_leaves_the_model_alone(
    name: str, model: Classifier, batch: Batch
) -> None:
    """Inner passes included, which no yield shows; raised inside the encoder, with all in place."""
    whole = step_of(model, batch)
    clean = step_of(model, batch).loss().item()
    drive(sane(name)(whole))
    before = Before(model)
    for at in range(whole.forwards):
        left = at

        def fail(module: nn.Module, inputs: Any, output: Any) -> None:
            nonlocal left
            if left == 0:
                raise Stop
            left -= 1

        step = step_of(model, batch)
        with (
            model.encoder.encoder.register_forward_hook(fail),  # type: ignore[union-attr, operator]
            pytest.raises(Stop),
        ):
            drive(sane(name)(step))
        before.check()
        assert step.loss().item() == clean, "a shift still stands"


def test_a_generator_closed_early_leaves_model_and_step_alone(
    name: str, model: Classifier, batch: Batch
) -> None:
    count = len(drive(sane(name)(step_of(model, batch))))
    clean = step_of(model, batch).loss().item()
    before = Before(model)
    for at in range(count + 1):
        step = step_of(model, batch)
        losses = sane(name)(step)
        for _ in range(at):
            next(losses).backward()
        losses.close()
        before.check()
        assert step.loss().item() == clean, "a shift still stands"


def test_weights_and_labels_of_the_batch_stay(name: str, model: Classifier, batch: Batch) -> None:
    kept, before = copy.deepcopy(batch), Before(model)
    drive(sane(name)(step_of(model, batch)))
    before.check()
    for each in ("input_ids", "attention_mask", "labels", "slots"):
        assert torch.equal(getattr(batch, each), getattr(kept, each))


# -- strength -----------------------------------------------------------------------------------


def test_without_strength_the_gradient_is_the_clean_one(
    name: str, model: Classifier, batch: Batch
) -> None:
    """Times the sum of the passes' weights, to rounding; `strength` says so too."""
    want = added(clean_gradients(model, batch), weight=KNOWN[name].weight)
    for settings in KNOWN[name].zeros:
        strategy = STRATEGIES[name](**settings)
        assert strategy.strength == 0
        assert relative_error(trained(strategy, model, batch), want) <= 1e-12


@pytest.mark.parametrize("name", [name for name in STRATEGIES if name != "none"])
def test_with_strength_the_gradient_differs(name: str, model: Classifier, batch: Batch) -> None:
    want = added(clean_gradients(model, batch), weight=KNOWN[name].weight)
    strategy = sane(name)
    assert strategy.strength > 0
    assert relative_error(trained(strategy, model, batch), want) > 1e-2


def test_the_shift_norm_is_logged_if_and_only_if_something_was_shifted(
    name: str, model: Classifier, batch: Batch
) -> None:
    """`fit_fold` raises on a strategy with a strength that moved neither embeddings nor weights."""
    step = step_of(model, batch)
    drive(sane(name)(step))
    assert moved_something(step) == (KNOWN[name].sane != {})
    for settings in KNOWN[name].still:
        step = step_of(model, batch)
        drive(STRATEGIES[name](**settings)(step))
        assert not moved_something(step)


def moved_something(step: Step) -> bool:
    embeddings = step.shift_norm is not None and float(step.shift_norm) > 0
    return embeddings or float(step.notes.get("weight_shift", 0.0)) > 0


@pytest.mark.parametrize("name", [name for name, known in KNOWN.items() if known.climbs])
def test_an_attack_raises_the_loss(name: str, model: Classifier, batch: Batch) -> None:
    """At a small strength, where the first order decides, in every scope it has."""
    climbs = KNOWN[name].climbs
    assert climbs is not None
    scopes = [value for listed, key, value in OPTIONS if listed == name and key == "scope"]
    for settings in [{"scope": scope} for scope in scopes] or [{}]:
        strategy = STRATEGIES[name](**climbs, **settings)
        values: list[float] = []

        def kept(logits: Tensor, labels: Tensor, values: list[float] = values) -> Tensor:
            losses = nn.functional.cross_entropy(logits, labels, reduction="none")
            values.append(losses.mean().item())
            return losses

        drive(strategy(step_of(model, batch, Once(kept))))
        assert values == sorted(values)
        assert values[-1] > values[0]


def test_the_clean_loss_comes_first(name: str, model: Classifier, batch: Batch) -> None:
    """The log's loss is the first pass's; clean unless the strategy puts noise on it."""
    step = step_of(model, batch)
    drive(sane(name)(step))
    clean = step_of(model, batch).loss().item()
    assert step.first_loss is not None
    assert (step.first_loss.item() == clean) == (not KNOWN[name].noise_first)
    assert not step.first_loss.requires_grad


# -- padding ------------------------------------------------------------------------------------


def embedding_outputs(strategy: Strategy, model: Classifier, batch: Batch) -> list[Tensor]:
    """Return what the embedding layer's normalisation gets in each pass (pads included)."""
    seen: list[Tensor] = []
    norm = model.encoder.embeddings.LayerNorm  # type: ignore[union-attr]

    def look(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        seen.append(inputs[0].detach().clone())

    with norm.register_forward_pre_hook(look):  # type: ignore[operator]
        drive(strategy(step_of(model, batch)))
    return seen


def test_padding_is_never_shifted(name: str, model: Classifier, batch: Batch) -> None:
    """Bit for bit, under every option but neftune's length="padded", which is there to do it."""
    (clean,) = embedding_outputs(sane("none"), model, batch)
    padding = batch.attention_mask == 0
    for settings in choices(name):
        seen = embedding_outputs(sane(name, **settings), model, batch)
        on_padding = [not torch.equal(each[padding], clean[padding]) for each in seen]
        if settings == {"length": "padded"}:
            assert all(on_padding)
        elif not KNOWN[name].moves_weights:
            assert not any(on_padding)
        if name != "none" and not KNOWN[name].moves_weights:
            assert not torch.equal(seen[-1][~padding], clean[~padding])


# -- randomness, loss scale ---------------------------------------------------------------------


def test_the_seed_decides_the_gradient(name: str, model: Classifier, batch: Batch) -> None:
    """The same seed gives the same bits; another one differs exactly where noise is drawn."""
    first, again, other = (
        trained(sane(name), model, batch, seed=seed) for seed in (SEED, SEED, SEED + 1)
    )
    assert identical(first, again)
    assert identical(first, other) == (not KNOWN[name].noisy)


def test_the_loss_scale_cancels(name: str, model: Classifier, batch: Batch) -> None:
    """Under every option; in inner passes too."""
    for settings in choices(name):
        want = trained(sane(name, **settings), model, batch)
        model.zero_grad()
        step = step_of(model, batch, scale=lambda loss: loss * 2.0**16)
        drive(sane(name, **settings)(step), weight=2.0**16)
        assert relative_error(added(gradients(model), weight=2.0**-16), want) <= 1e-12, settings


def test_earlier_gradients_steer_nothing(name: str, model: Classifier, batch: Batch) -> None:
    """Under accumulation `.grad` holds earlier micro-batches: it is added to, and never read."""
    for settings in choices(name):
        want = trained(sane(name, **settings), model, batch)
        model.zero_grad()
        for weight in model.parameters():
            weight.grad = torch.ones_like(weight)
        drive(sane(name, **settings)(step_of(model, batch)))
        got = {key: gradient - 1 for key, gradient in gradients(model).items()}
        assert relative_error(got, want) <= 1e-9, settings


def test_each_pass_runs_inside_autocast(name: str, model: Classifier, batch: Batch) -> None:
    """In bf16 every pass does; strategies see losses in at least fp32, and shifts as the weights."""
    model = model.float()
    entered = 0

    def autocast() -> torch.autocast:
        nonlocal entered
        entered += 1
        return torch.autocast("cpu", torch.bfloat16)

    step = step_of(model, batch, autocast=autocast)
    for loss in sane(name)(step):
        assert loss.dtype == torch.float32
        loss.backward()
    assert entered == step.forwards
    assert step.new_shift().dtype == torch.float32
    assert all(torch.isfinite(grad).all() for grad in gradients(model).values())


# -- options, composition -----------------------------------------------------------------------


@pytest.mark.parametrize(("listed", "key", "value"), OPTIONS)
def test_every_value_of_every_option_does_something_of_its_own(
    listed: str, key: str, value: str, model: Classifier, batch: Batch
) -> None:
    if key == "dropout":
        set_dropout(model, 0.3)
    torch.manual_seed(0)
    mine = trained(sane(listed, **{key: value}), model, batch)
    assert all(torch.isfinite(grad).all() for grad in mine.values())
    for name, other_key, other in OPTIONS:
        if (name, other_key) == (listed, key) and other != value:
            torch.manual_seed(0)
            theirs = trained(sane(listed, **{key: other}), model, batch)
            assert relative_error(mine, theirs) > 1e-4, other


@pytest.mark.parametrize(("listed", "key"), sorted({(listed, key) for listed, key, _ in OPTIONS}))
def test_a_value_that_is_no_option_cannot_be_asked_for(listed: str, key: str) -> None:
    with pytest.raises(InputError, match=f"{key} is 'nonsense'"):
        parse_spec(f"{listed}({key}=nonsense)", STRATEGIES)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_go_around_every_strategy(
    wrapper: str, name: str, model: Classifier, batch: Batch
) -> None:
    """Both do their part; the text of the pair says all of it."""
    inner = sane(name)
    both = sane(wrapper, inner=inner)
    text = format_spec(both, STRATEGIES)
    assert parse_spec(text, STRATEGIES) == both
    assert parse_spec(f"{wrapper}+{name}", STRATEGIES) == STRATEGIES[wrapper](
        inner=STRATEGIES[name]()
    )
    before = Before(model)
    together = trained(both, model, batch)
    before.check()
    assert relative_error(together, trained(inner, model, batch)) > 1e-3
    if name != "none":
        alone = added(trained(sane(wrapper), model, batch), weight=KNOWN[name].weight)
        assert relative_error(together, alone) > 1e-3
    assert len(drive(both(step_of(model, batch)))) == len(drive(inner(step_of(model, batch))))


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrappers_moves_are_told_from_those_inside(
    wrapper: str, name: str, model: Classifier, batch: Batch
) -> None:
    step = step_of(model, batch)
    drive(sane(wrapper, inner=sane(name))(step))
    assert moved_something(step)
    acted = step.own_move is not None and float(step.own_move) > 0
    assert acted == (name not in ("none", *WRAPPERS))


@pytest.mark.parametrize("inner", ["fgm", "fgsm", "pgd", "vat"])
def test_an_attack_without_a_gradient_to_follow_has_not_acted(inner: str) -> None:
    """Not even vat, which looks for a direction from a random one: nothing is trained there."""
    model = Linear()
    with torch.no_grad():
        model.w.zero_()
    for strategy in (sane(inner), sane("neftune", inner=sane(inner))):
        step = step_of(model, binary_batch(model))
        drive(strategy(step))
        assert step.own_move is not None
        assert float(step.own_move) == 0.0


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_without_strength_is_what_it_wraps(
    wrapper: str, name: str, model: Classifier, batch: Batch
) -> None:
    """Bit for bit, where the inner one draws no noise (the wrapper's own draw comes first)."""
    (zero,) = KNOWN[wrapper].zeros
    both = STRATEGIES[wrapper](**zero, inner=sane(name))
    assert both.strength == sane(name).strength
    if not KNOWN[name].noisy:
        mine, inner = (trained(each, model, batch) for each in (both, sane(name)))
        assert identical(mine, inner)


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_passes_on_the_remarks_of_what_it_wraps(wrapper: str, name: str) -> None:
    """At the defaults, where pgd has one; the command line asks the outermost strategy only."""
    inner = STRATEGIES[name]()
    remarks = getattr(inner, "remarks", list)()
    assert remarks or name != "pgd"
    assert set(remarks) <= set(getattr(STRATEGIES[wrapper](inner=inner), "remarks", list)())


def test_the_spec_of_any_settings_reads_back(name: str) -> None:
    for settings in ({}, KNOWN[name].sane, *KNOWN[name].zeros):
        strategy = STRATEGIES[name](**settings)
        assert parse_spec(format_spec(strategy, STRATEGIES), STRATEGIES) == strategy
    for key in KNOWN[name].sane:
        assert f"{key}=" in format_spec(sane(name), STRATEGIES)
