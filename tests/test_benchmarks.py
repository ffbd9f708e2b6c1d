"""The benchmarks: recipes that equal the strategies they are measured against, scripts that run."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import cuda, machinery_checks, main_job, recipes, step_cost
from benchmarks.checks import Check
from benchmarks.environment import environment
from benchmarks.gradient_checks import settings
from benchmarks.main_job import README_JOB, MainJob, Scores
from benchmarks.peak_memory import MIB, step_peak
from benchmarks.recipes import RECIPES, Forward
from benchmarks.toys import KINDS, toy
from competition_kit.cli import _parser
from competition_kit.commands.setup import MAX_LENGTH
from competition_kit.data.encoding import collate
from competition_kit.errors import KitError
from competition_kit.specs import parse_spec, spec_names
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
    assert set(STRATEGIES) <= {name for spec in settings() for name in spec_names(spec)}
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


def test_a_part_that_fails_or_ends_with_an_error_loses_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def breaks(*arguments: Any) -> Iterator[Check]:
        yield Check("second", "before the error", 1.0, 2.0)
        raise RuntimeError("CUDA error: something\nand how to debug it")

    monkeypatch.setitem(cuda.PARTS, "gradients", lambda *_: iter([Check("first", "bad", 3.0, 2.0)]))
    monkeypatch.setitem(cuda.PARTS, "bf16", breaks)
    monkeypatch.setitem(cuda.PARTS, "fp16", lambda *_: iter([Check("third", "good", 1.0, 2.0)]))
    monkeypatch.setitem(cuda.PARTS, "machinery", lambda *_: iter([]))
    path = tmp_path / "checks.json"

    assert cuda.main(["--device", "cpu", "--json", str(path)]) == 1

    said = capsys.readouterr()
    assert said.out.count("FAILED") == 3  # two checks and their number
    assert "Traceback" in said.err and "and how to debug it" in said.err
    written = json.loads(path.read_text(encoding="utf-8"))
    assert written["failed"] == 2
    verdicts = {(check["part"], check["check"]): check["verdict"] for check in written["checks"]}
    assert verdicts == {
        ("first", "bad"): "FAILED",
        ("second", "before the error"): "ok",
        ("bf16", "runs to the end (RuntimeError: CUDA error: something)"): "FAILED",
        ("third", "good"): "ok",
    }
    assert set(written["seconds"]) == {"gradients", "bf16", "fp16", "machinery"}


@pytest.mark.parametrize(("limit", "code"), [(480, 0), (-1, 1)])
def test_all_parts_together_have_a_time_limit_on_a_gpu(
    limit: int,
    code: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(cuda, "environment", lambda device: environment(torch.device("cpu")))
    monkeypatch.setattr(cuda, "PARTS", {"bf16": lambda *_: iter(())})
    monkeypatch.setattr(cuda, "SECONDS", limit)
    path = tmp_path / "checks.json"

    assert cuda.main(["--json", str(path)]) == code

    (check,) = json.loads(path.read_text(encoding="utf-8"))["checks"]
    assert check["check"] == "seconds of all parts" and check["bound"] == limit


def test_the_main_job_is_the_command_in_the_readme(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the stored scores of that command would be no reference."""
    called: list[list[str]] = []
    monkeypatch.setattr(main_job, "main", lambda arguments: called.append(arguments) or 1)
    with pytest.raises(KitError):
        README_JOB.run("cpu", "fp32")

    job, readme = (vars(_parser().parse_args(a)) for a in (called[0], ["cv", "--adv", "fgm"]))

    assert readme.pop("max_length") is None and job.pop("max_length") == MAX_LENGTH
    assert readme.pop("precision") == "auto" and job.pop("precision") == "fp32"
    for where in ("out", "device"):
        del readme[where], job[where]
    assert job == readme


def test_stored_cpu_scores_are_taken_for_the_default_main_job_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Path | None] = []

    def check(job: MainJob, device: str, *, cpu_metrics: Path | None, with_cpu: bool) -> Any:
        taken.append(cpu_metrics)
        return [], {}

    stored, own = tmp_path / "main_job-cpu.json", tmp_path / "own.json"
    own.touch()
    monkeypatch.setattr(cuda, "check_main_job", check)
    monkeypatch.setattr(cuda, "CPU_SCORES", stored)
    flags = ["--device", "cpu", "--parts", "main"]

    cuda.main(flags)
    stored.touch()
    for more in (["--workers", "3"], ["--epochs", "3"], ["--cpu-scores", str(own)]):
        cuda.main([*flags, *more])

    assert taken == [None, stored, None, own]


SCORED = ("fp32", "fp32 again", "fp32, 2 workers", "bf16")  # runs of the main job


def test_scores_are_compared_with_the_stored_ones_of_the_cpu() -> None:
    def scored(mean: float, oof: bool = True) -> Scores:
        return Scores("f1", mean, mean, [mean], None, np.zeros((2, 2)) if oof else None)

    found = {f"cpu {name}": scored(0.7) for name in SCORED}
    found[main_job.STORED] = scored(0.6, oof=False)

    checks = {check.name: check for check in main_job._compare(found, "cpu")}

    assert checks["cpu fp32 - cpu fp32"].figure == pytest.approx(0.1)
    assert [name for name, check in checks.items() if not check.ok] == ["cpu fp32 - cpu fp32"]


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
    assert parts == {"gradient", "bf16", "fp16", "machinery"}
    (left,) = (check for check in written["checks"] if check["verdict"] != "ok")
    assert (left["check"], left["verdict"]) == ("too little memory (needs a GPU)", "not measured")


def test_little_memory_is_a_limit_on_the_gpu_that_is_taken_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[float] = []
    rows = iter([512, 256])
    card = SimpleNamespace(total_memory=1000)
    for name, stub in {
        "empty_cache": lambda: None,
        "reset_peak_memory_stats": lambda device: None,
        "max_memory_reserved": lambda device: 100,
        "get_device_properties": lambda device: card,
        "set_per_process_memory_fraction": lambda part, device: limits.append(part),
    }.items():
        monkeypatch.setattr(torch.cuda, name, stub)
    monkeypatch.setattr(
        machinery_checks, "_fit", lambda *_: SimpleNamespace(rows_at_a_time=next(rows))
    )
    found = list(machinery_checks._little_memory(torch.device("cuda")))
    assert [(check.figure, check.ok) for check in found] == [(512, True), (256, True), (0, True)]
    assert limits == [pytest.approx(0.07), 1.0]


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
    assert set(written["main_job"]["scores"]) == {f"cpu {name}" for name in SCORED}


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
        ours = sides[variant["strategy"], "kit"]
        ratio, own = (one["seconds"][0] / one["plain_seconds_beside"][0] for one in (variant, ours))
        assert variant["ratio_to_plain"]["median"] == pytest.approx(ratio)
        assert variant["kit_is_times_as_fast"]["median"] == pytest.approx(ratio / own)
    assert "predicted" in capsys.readouterr().out
