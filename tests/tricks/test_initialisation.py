"""Tricks that change the model before training: noisytune, reinit, mixout; and where layers are."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from competition_kit.errors import InputError
from competition_kit.training.model import Classifier, build_classifier
from competition_kit.training.seeds import FoldSeeds
from competition_kit.training.weights import MixedWeight, settle
from competition_kit.tricks.layers import encoder_layers
from competition_kit.tricks.mixout import Mixout
from competition_kit.tricks.noisytune import NoisyTune
from competition_kit.tricks.reinit import Reinit

KINDS = ("bert", "roberta", "electra", "deberta-v2", "albert", "distilbert", "xlm-roberta")
LAYERS = 3


def tiny(kind: str, *, width: int = 32) -> Classifier:
    """Return a float64 classifier on a random encoder of three layers, without dropout."""
    import transformers as hf

    common: dict[str, Any] = {
        "vocab_size": 30,
        "hidden_size": width,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "intermediate_size": 2 * width,
        "max_position_embeddings": 40,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    }
    torch.manual_seed(0)
    encoder: Any
    if kind == "bert":
        encoder = hf.BertModel(hf.BertConfig(**common), add_pooling_layer=False)
    elif kind == "roberta":
        encoder = hf.RobertaModel(hf.RobertaConfig(**common), add_pooling_layer=False)
    elif kind == "xlm-roberta":
        encoder = hf.XLMRobertaModel(hf.XLMRobertaConfig(**common), add_pooling_layer=False)
    elif kind == "electra":
        encoder = hf.ElectraModel(hf.ElectraConfig(**common, embedding_size=16))
    elif kind == "albert":
        settings = {**common, "classifier_dropout_prob": 0.0, "embedding_size": 16}
        encoder = hf.AlbertModel(hf.AlbertConfig(**settings), add_pooling_layer=False)
    elif kind == "deberta-v2":
        encoder = hf.DebertaV2Model(
            hf.DebertaV2Config(
                **common,
                relative_attention=True,
                position_buckets=8,
                pos_att_type=["p2c", "c2p"],
                share_att_key=True,
                norm_rel_ebd="layer_norm",
                position_biased_input=False,
            )
        )
    else:
        encoder = hf.DistilBertModel(
            hf.DistilBertConfig(
                vocab_size=30,
                dim=width,
                n_layers=LAYERS,
                n_heads=4,
                hidden_dim=2 * width,
                max_position_embeddings=40,
                dropout=0.0,
                attention_dropout=0.0,
            )
        )
    head = torch.Generator().manual_seed(1)
    return Classifier(encoder, 3, dropout=0.0, generator=head).double()


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(5, 30, (4, 7), generator=generator), torch.ones(4, 7, dtype=torch.long)


def copy_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


# -- where the layers are -----------------------------------------------------------------------


def test_layers_are_found_from_the_lowest_to_the_highest(kind: str) -> None:
    """In the order in which they run; together they hold all but embeddings and what is shared."""
    model = tiny(kind).eval()
    layers = encoder_layers(model.encoder)
    assert len(layers) == (1 if kind == "albert" else LAYERS)
    order: list[int] = []
    for number, layer in enumerate(layers):
        layer.register_forward_hook(lambda *_, number=number: order.append(number))
    model(*inputs())
    assert order == ([0] * LAYERS if kind == "albert" else list(range(LAYERS)))
    inside = {id(p) for layer in layers for p in layer.parameters()}
    outside = [n for n, p in model.encoder.named_parameters() if id(p) not in inside]
    allowed = ("embeddings", "embedding_hidden_mapping_in", "encoder.LayerNorm")
    assert outside and all(any(part in name for part in allowed) for name in outside), outside


def test_an_encoder_without_a_stack_is_refused() -> None:
    encoder = nn.Linear(3, 3)
    encoder.config = None  # type: ignore[assignment]
    with pytest.raises(InputError, match="no list of layers"):
        encoder_layers(encoder)


# -- noisytune ----------------------------------------------------------------------------------


def test_noise_is_uniform_within_half_the_strength_of_each_matrix_own_deviation(kind: str) -> None:
    """T15: |W' - W| <= s/2 std(W), of mean 0 and variance s^2 std(W)^2 / 12; vectors stay.

    Over all n elements, u = (W' - W) / (s std) is U(-1/2, 1/2). The mean of n draws has standard
    deviation sqrt(1/12n), that of u^2 (variance 1/180) sqrt(1/180n); five of each are allowed.
    """
    model = tiny(kind)
    before = copy_of(model)
    NoisyTune(strength=0.2).prepare(model, torch.Generator().manual_seed(0))
    units = []
    for name, weight in model.named_parameters():
        change = weight.detach() - before[name]
        if not name.startswith("encoder.") or weight.ndim < 2:
            assert not change.any(), name
            continue
        unit = change / (0.2 * before[name].std())
        assert unit.abs().max() <= 0.5 + 1e-9, name
        assert unit.abs().max() > 0.45, name
        units.append(unit.flatten())
    u = torch.cat(units)
    assert abs(u.mean()) < 5 * (1 / (12 * len(u))) ** 0.5
    assert abs(u.square().mean() - 1 / 12) < 5 * (1 / (180 * len(u))) ** 0.5


def test_the_head_of_attention_pooling_gets_no_noise(model_folder: Callable[[str], Path]) -> None:
    model = build_classifier(model_folder("bert"), 3, pooling="attention")
    before = copy_of(model)
    NoisyTune().prepare(model, torch.Generator())
    for name, weight in model.named_parameters():
        if not name.startswith("encoder."):
            assert torch.equal(weight, before[name])


def test_tensors_of_one_element_and_constants_get_no_noise_and_no_nan() -> None:
    model = tiny("bert")
    model.encoder.scalar = nn.Parameter(torch.ones(1, 1, dtype=torch.float64))
    model.encoder.constant = nn.Parameter(torch.full((3, 3), 0.5, dtype=torch.float64))
    NoisyTune(strength=0.2).prepare(model, torch.Generator())
    assert torch.equal(model.encoder.scalar, torch.ones(1, 1, dtype=torch.float64))
    assert torch.equal(model.encoder.constant, torch.full((3, 3), 0.5, dtype=torch.float64))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_a_tied_matrix_gets_its_noise_once() -> None:
    model = tiny("bert")
    model.encoder.tied = nn.Embedding(30, 32)
    table = model.get_input_embeddings().weight
    model.encoder.tied.weight = table  # type: ignore[assignment]
    deviation = table.detach().std()  # type: ignore[operator]
    before = table.detach().clone()  # type: ignore[operator]
    NoisyTune(strength=0.2).prepare(model, torch.Generator())
    change = (table - before) / (0.2 * deviation)
    assert change.abs().max() <= 0.5 + 1e-9  # twice would reach beyond


def test_noise_is_of_the_seed_and_the_fold() -> None:
    def noised(seed: int, fold: int) -> Tensor:
        model = tiny("bert")
        NoisyTune().prepare(model, FoldSeeds(seed, fold).trick("NoisyTune"))
        return model.get_input_embeddings().weight.detach()  # type: ignore[union-attr, return-value]

    assert torch.equal(noised(0, 0), noised(0, 0))
    assert not torch.equal(noised(0, 0), noised(0, 1))
    assert not torch.equal(noised(0, 0), noised(1, 0))


# -- reinit -------------------------------------------------------------------------------------


@pytest.mark.parametrize("layers", [1, 2])
def test_reinit_draws_the_top_layers_anew_and_no_other(kind: str, layers: int) -> None:
    """Matrices ~ N(0, initializer_range), biases 0, LayerNorm weight 1 and bias 0."""
    model = tiny(kind)
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(7.0)
    if kind == "albert":
        with pytest.raises(InputError, match="ALBERT"):
            Reinit(layers=layers).prepare(model, torch.Generator())
        assert all((p == 7.0).all() for p in model.parameters())
        return
    Reinit(layers=layers).prepare(model, torch.Generator().manual_seed(0))
    stack = encoder_layers(model.encoder)
    fresh = {id(p) for layer in stack[-layers:] for p in layer.parameters()}
    assert fresh
    norms = {
        id(p)
        for module in model.modules()
        if type(module).__name__ == "LayerNorm"
        for p in [module.weight]
    }
    for name, weight in model.named_parameters():
        if id(weight) not in fresh:
            assert (weight == 7.0).all(), name
        elif weight.ndim == 2:
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.15), name
            assert float(weight.detach().mean()) == pytest.approx(0.0, abs=0.004), name
        else:
            assert (weight == (1.0 if id(weight) in norms else 0.0)).all(), name


def test_reinit_leaves_at_least_one_pretrained_layer() -> None:
    with pytest.raises(InputError, match="3 of 3"):
        Reinit(layers=3).prepare(tiny("bert"), torch.Generator())


def test_reinit_is_of_its_generator_alone() -> None:
    def drawn(seed: int, elsewhere: int) -> Tensor:
        model = tiny("bert")
        torch.manual_seed(elsewhere)
        Reinit().prepare(model, torch.Generator().manual_seed(seed))
        return torch.cat([p.flatten() for p in encoder_layers(model.encoder)[-1].parameters()])

    assert torch.equal(drawn(0, 1), drawn(0, 2))
    assert not torch.equal(drawn(0, 1), drawn(1, 1))


# -- mixout -------------------------------------------------------------------------------------


def mixed_weight(p: float) -> tuple[MixedWeight, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    anchor, weight = (torch.randn(6, 5, dtype=torch.float64, generator=generator) for _ in range(2))
    return MixedWeight(anchor, p).train(), anchor, weight


@pytest.mark.parametrize("p", [0.3, 0.9])
def test_each_element_is_one_of_two_values_whose_mean_is_the_weight(p: float) -> None:
    """T25: with M = 1 (probability p) w0; with M = 0 (w - p w0) / (1 - p): the mean is w.

    The share of anchors over all draws is binomial: five standard deviations are allowed.
    """
    mix, anchor, weight = mixed_weight(p)
    torch.manual_seed(0)
    draws = torch.stack([mix(weight) for _ in range(2000)])
    other = (weight - p * anchor) / (1 - p)
    is_anchor = torch.isclose(draws, anchor.expand_as(draws), rtol=0, atol=1e-12)
    is_other = torch.isclose(draws, other.expand_as(draws), rtol=0, atol=1e-12)
    assert (is_anchor ^ is_other).all()
    share = is_anchor.double().mean()
    assert abs(share - p) < 5 * (p * (1 - p) / is_anchor.numel()) ** 0.5
    spread = (p / (1 - p)) ** 0.5 * (weight - anchor).abs()
    assert ((draws.mean(0) - weight).abs() <= 5 * spread / 2000**0.5 + 1e-12).all()
    per_row = is_anchor.double().mean(2)
    assert per_row.std() > 0.01, "one mask repeated over a row would make these 0 or 1"
    assert ((per_row > 0) & (per_row < 1)).any()


def test_mixout_without_probability_or_in_evaluation_is_the_weight_itself() -> None:
    mix, _, weight = mixed_weight(0.0)
    assert torch.equal(mix(weight), weight)
    mix, _, weight = mixed_weight(0.9)
    assert not torch.equal(mix(weight), weight)
    assert torch.equal(mix.eval()(weight), weight)


def test_the_gradient_reaches_the_elements_that_are_no_anchor() -> None:
    """D w~ / D w = (1 - M) / (1 - p): the anchor is a constant."""
    mix, anchor, weight = mixed_weight(0.4)
    weight.requires_grad_()
    mixed = mix(weight)
    (gradient,) = torch.autograd.grad(mixed.sum(), weight)
    kept = ~torch.isclose(mixed, anchor, rtol=0, atol=1e-12)
    torch.testing.assert_close(gradient, kept.double() / 0.6)
    assert 0 < kept.double().mean() < 1


def test_mixout_covers_the_linear_layers_of_the_encoder_and_no_other(kind: str) -> None:
    model = tiny(kind).train()
    names = [n for n, m in model.named_modules() if isinstance(m, nn.Linear)]
    ids, mask = inputs()
    clean = model(ids, mask)
    Mixout(p=0.5).prepare(model, torch.Generator())
    mixed = {n for n, m in model.named_modules() if hasattr(m, "parametrizations")}
    assert mixed == {name for name in names if name.startswith("encoder.")}
    torch.manual_seed(0)
    # while w is still the anchor both values are w: mixing shows nothing yet
    torch.testing.assert_close(model(ids, mask), clean)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("original"):
                weight.add_(0.1 * torch.randn(weight.shape).double())
    moved = model(ids, mask)
    assert (moved - model(ids, mask)).abs().max() > 1e-6, "another mask in each pass"
    still = model.eval()(ids, mask)
    assert torch.equal(still, model(ids, mask))
    settle(model)
    assert torch.equal(model(ids, mask), still)
    assert [n for n, m in model.named_modules() if isinstance(m, nn.Linear)] == names
    assert not any(hasattr(m, "parametrizations") for m in model.modules())


def test_saving_removes_mixout_and_keeps_the_trained_weights(
    model_folder: Callable[[str], Path], tmp_path: Path
) -> None:
    """The file reads into a plain model, whose predictions are those of the mixed one in eval."""
    model = build_classifier(model_folder("bert"), 3, generator=FoldSeeds(0, 0).head())
    Mixout(p=0.5).prepare(model, torch.Generator())
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.1 * torch.randn(weight.shape))
    ids, mask = inputs()
    ids = ids.clamp_max(20)
    want = model.eval()(ids, mask)
    model.save(tmp_path / "model.safetensors")
    plain = build_classifier(model_folder("bert"), 3)
    plain.restore(tmp_path / "model.safetensors")
    assert torch.equal(plain.eval()(ids, mask), want)


def test_the_anchor_is_the_encoder_after_the_noise() -> None:
    """The listed order: noisytune before mixout. The anchor does not move with the weight."""
    model = tiny("bert")
    NoisyTune(strength=0.5).prepare(model, torch.Generator())
    noised = copy_of(model)
    Mixout(p=0.5).prepare(model, torch.Generator())
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(1.0)
    anchors = {n: m.anchor for n, m in model.named_modules() if isinstance(m, MixedWeight)}
    assert len(anchors) == 6 * LAYERS
    for name, anchor in anchors.items():
        original = name.removesuffix(".parametrizations.weight.0") + ".weight"
        assert torch.equal(anchor, noised[original])
