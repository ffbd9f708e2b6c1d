"""The benchmarks: recipes that equal the strategies they are measured against, scripts that run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import cuda, recipes, step_cost
from benchmarks.checks import Check
from benchmarks.gradient_checks import settings
from benchmarks.peak_memory import MIB, step_peak
from benchmarks.recipes import RECIPES, Forward
from benchmarks.toys import KINDS, toy
from competition_kit.data.encoding import collate
from competition_kit.specs import parse_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.training.objectives import CrossEntropy, Once
from competition_kit.training.step import Step

SEED = 5
pytestmark = pytest.mark.usefixtures("one_core")


def same_noise(like: Tensor) -> Tensor:
    """Draw what a `Step` with a generator of this seed draws first."""
    return torch.empty_like(like).uniform_(-1.0, 1.0, generator=torch.Generator().manual_seed(SEED))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("spec", "recipe"),
    [
        ("none", recipes.plain),
        ("fgm(epsilon=0.7)", partial(recipes.fgm, epsilon=0.7)),
        ("pgd", recipes.pgd),
        ("pgd(epsilon=0.4, steps=4)", partial(recipes.pgd, epsilon=0.4, steps=4)),
        ('neftune(length="padded")', partial(recipes.neftune, draw=same_noise)),
        ("freelb", partial(recipes.freelb, draw=same_noise)),
        ("freelb(max_norm=0.1)", partial(recipes.freelb, max_norm=0.1, draw=same_noise)),
    ],
)
def test_recipes_and_strategies_give_the_same_gradient(
    kind: str, spec: str, recipe: Callable[[Forward], None]
) -> None:
    """Only what both cost may differ between the two sides of a ratio."""
    made = toy(kind, rows=6)
    batch = collate(made.encoded, np.arange(6), made.labels)
    ours = made.model.double()
    theirs = copy.deepcopy(ours)
    generator = torch.Generator().manual_seed(SEED)
    with closing(
        parse_spec(spec, STRATEGIES)(Step(ours, batch, Once(CrossEntropy()), generator))
    ) as all_:
        for loss in all_:
            loss.backward()
    recipe(Forward(theirs, batch, CrossEntropy()))
    found = torch.cat([p.grad.flatten() for p in ours.parameters() if p.grad is not None])
    pasted = torch.cat([p.grad.flatten() for p in theirs.parameters() if p.grad is not None])
    assert found.norm() > 0
    assert (found - pasted).norm() <= 1e-10 * found.norm()


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_leave_weights_and_model_as_they_were(name: str) -> None:
    made = toy("bert", rows=6)
    before = copy.deepcopy(made.model.state_dict())
    RECIPES[name](
        Forward(made.model, collate(made.encoded, np.arange(6), made.labels), CrossEntropy())
    )
    after = made.model.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert "forward" not in vars(made.model.get_input_embeddings())


def test_the_peak_of_known_allocations() -> None:
    """Two of three blocks stand at one time at most; what stood before does not count."""
    before = [torch.zeros(MIB)]

    def work() -> None:
        first = torch.zeros(2 * MIB)  # 8 MiB
        second = torch.zeros(MIB)  # 4 MiB
        del first
        before.append(second + torch.zeros(MIB))

    assert step_peak(work, torch.device("cpu")) == pytest.approx(12, abs=0.01)


def test_a_strategy_without_settings_of_its_own_is_checked_at_its_defaults(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert set(STRATEGIES) <= {part for spec in settings() for part in spec.split("+")}
    monkeypatch.setitem(STRATEGIES, "another", type("Another", (), {}))
    assert settings()[-1] == "another"


def test_nan_passes_no_check() -> None:
    assert not Check("", "", float("nan"), 1.0).ok
    assert not Check("", "", float("nan"), 1.0, at_least=True).ok


def test_cuda_without_a_gpu(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert cuda.main([]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_scores_that_are_not_there_are_missed_before_the_checks(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cuda.main(["--device", "cpu", "--cpu-scores", "nowhere.json"])
    assert "nowhere.json: no such file" in capsys.readouterr().err


def test_cuda_rehearsal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Gradients, bf16 and fp16 with its overflows hold on the CPU too.

    Training through overflows is rehearsed with a strategy of each kind: it takes long on a CPU.
    """
    few = {name: STRATEGIES[name] for name in ("none", "pgd", "awp")}
    monkeypatch.setattr("benchmarks.fp16_checks.STRATEGIES", few)
    path = tmp_path / "rehearsal.json"
    assert cuda.main(["--device", "cpu", "--json", str(path)]) == 0
    assert "REHEARSAL ON THE CPU" in capsys.readouterr().out
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["rehearsal_on_cpu"] and written["failed"] == 0
    parts = {check["part"].split()[0].strip(",") for check in written["checks"]}
    assert parts == {"gradient", "bf16", "fp16"}
    assert {check["verdict"] for check in written["checks"]} == {"ok"}


def test_cuda_main_job_on_a_small_competition(
    tmp_path: Path, model_folder: Callable[[str], Path], competition_folder: Callable[..., Path]
) -> None:
    """The same code as on a GPU; on the CPU a rerun is the same to the last bit."""
    path = tmp_path / "main.json"
    flags = ["--device", "cpu", "--parts", "main", "--epochs", "1", "--max-length", "24"]
    data, model = competition_folder(), model_folder("bert")
    flags += ["--workers", "1", "--data", str(data), "--model", str(model), "--json", str(path)]
    code = cuda.main(flags)
    written = json.loads(path.read_text(encoding="utf-8"))
    assert code == 0, written["checks"]
    figures = {check["check"]: check["figure"] for check in written["checks"]}
    assert figures["rerun, largest difference of a probability"] == 0
    assert set(written["main_job"]["scores"]) == {"cpu fp32", "cpu fp32 again", "cpu bf16"}


def test_step_cost(
    tmp_path: Path,
    model_folder: Callable[[str], Path],
    competition_folder: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = tmp_path / "cost.json"
    flags = ["--model", str(model_folder("roberta")), "--data", str(competition_folder())]
    size = "--batch-size 4 --batches 2 --repetitions 1 --device cpu --threads 1".split()
    assert step_cost.main([*flags, *size, "--json", str(path)]) == 0
    written = json.loads(path.read_text(encoding="utf-8"))
    assert {"device", "cpu", "versions", "git_commit", "date"} <= set(written["environment"])
    sides = {(variant["strategy"], variant["side"]): variant for variant in written["variants"]}
    library = {(name, "bert4torch") for name in recipes.library_recipes()}
    assert set(sides) - library == {(name, "kit") for name in STRATEGIES} | {
        (name, "recipe") for name in RECIPES
    }
    predicted = {key: variant["predicted_ratio_to_plain"] for key, variant in sides.items()}
    assert predicted["pgd", "kit"] == pytest.approx(10 / 3)
    assert predicted["pgd", "recipe"] == pytest.approx(12 / 3)
    for variant in sides.values():
        assert variant["rows_per_second"]["median"] > 0
        assert variant["peak_step_mb"] > 0
        ours = sides[variant["strategy"], "kit"]["seconds"]
        faster = [theirs / own for theirs, own in zip(variant["seconds"], ours, strict=True)]
        assert variant["kit_is_times_as_fast"]["median"] == pytest.approx(np.median(faster))
    assert "predicted" in capsys.readouterr().out
