"""Every check that needs a GPU, in one go, in less than eight minutes on a data-centre GPU.

    python -m benchmarks.cuda
    python -m benchmarks.cuda --data FOLDER --model FOLDER --cpu-scores metrics.json

Parts: `gradients` (fp32 on the GPU against float64 on the CPU), `bf16` and `fp16` (gradients under
autocast; training through an overflow), `machinery` (dropout drawn again, deterministic kernels, too
little memory), `main` (run_cv.py end to end, scores beside the CPU's) and
`cost` (time and memory of a step, MiniLM and roberta-base shapes, bf16). A part that ends with an
error is a failed check, and the next one begins. Prints a table, writes JSON, exits with 1 if a
check failed and with 2 if there is no GPU.

The CPU's scores are those of `python run_cv.py --adv fgm` on two cores, which are in the
repository, as long as the main job has that command's settings; of another main job give them, or
let them be made.

`--device cpu` is a rehearsal: the same code on the CPU, to test this script. It shows nothing about
a GPU, says so, and writes no JSON unless told where. Needs torch, transformers, scikit-learn,
pandas and tqdm; with data and model given as folders it needs no network.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import checks, step_cost
from benchmarks.checks import Check
from benchmarks.environment import RESULTS, environment, publish, result_path
from benchmarks.fp16_checks import check_fit, check_huge_scale
from benchmarks.gradient_checks import check_bf16, check_fp16, check_gradients
from benchmarks.machinery_checks import check_machinery
from benchmarks.main_job import README_JOB, MainJob, check_main_job
from benchmarks.workload import from_shape
from competition_kit.results.tables import text_table

__all__ = ["main"]

REHEARSED = (
    "gradients",
    "bf16",
    "fp16",
    "machinery",
)  # the others take long on a CPU, so only when asked for
# shape -> tokens of a row, rows of a batch: short texts on a small encoder leave a GPU waiting for
# Python, 8192 tokens on a base-size one keep it busy
COST = {"minilm": (32, 16), "roberta-base": (128, 64)}
RECIPE_SPEED = 0.9  # at least; on a busy GPU, where times are the device's
PEAK_OVER_RECIPE = 1.02
SECONDS = 480  # of all parts, on a GPU
CPU_SCORES = RESULTS / "main_job-cpu.json"  # metrics.json of the README's command, on two cores


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks; return the exit code."""
    options = _parser().parse_args(arguments)
    rehearsal = options.device == "cpu"
    if not rehearsal and not torch.cuda.is_available():
        print(
            "error: torch sees no CUDA device; --device cpu rehearses on the CPU", file=sys.stderr
        )
        return 2
    if not rehearsal:  # a GPU machine may have no network to wait for
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    device = torch.device(options.device)
    facts = environment(device)  # now: a part may leave the device unusable
    found: list[Check] = []
    recorded: dict[str, Any] = {"rehearsal_on_cpu": rehearsal, "seconds": {}}
    for part in options.parts or (REHEARSED if rehearsal else PARTS):
        print(f"{part} ...", file=sys.stderr)
        start = time.perf_counter()
        found += _checks(part, options, device, recorded)
        recorded["seconds"][part] = time.perf_counter() - start
    if not rehearsal:
        limit = None if options.with_cpu else SECONDS  # the CPU takes its own time
        found.append(
            Check("time", "seconds of all parts", sum(recorded["seconds"].values()), limit)
        )
    failed = [check for check in found if not check.ok]
    recorded["failed"] = len(failed)
    recorded["checks"] = checks.as_json(found)

    path = options.json or (None if rehearsal or options.parts else result_path("cuda", facts))
    for figures in recorded.get("step_cost", []):
        print(f"\n{text_table(step_cost.HEADER, step_cost.table(figures))}")
        print("\n".join(f"  {note}" for note in step_cost.notes(figures)))
    seconds = ", ".join(f"{part} {taken:.0f}" for part, taken in recorded["seconds"].items())
    failures = f"{len(failed)} of {len(found)} checks FAILED"
    remarks = [f"seconds: {seconds}", failures if failed else f"{len(found)} checks, all ok"]
    if rehearsal:
        remarks.append("REHEARSAL ON THE CPU: none of these figures is from a GPU")
    publish(facts, checks.HEADER, checks.table(found), recorded, path, remarks)
    return 1 if failed else 0


def _checks(
    part: str, options: argparse.Namespace, device: torch.device, recorded: dict[str, Any]
) -> Iterator[Check]:
    """Yield a part's checks; an error in it is one more, and no loss of those before."""
    try:
        yield from PARTS[part](options, device, recorded)
    except Exception as error:
        traceback.print_exc()
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        yield Check(part, f"runs to the end ({said})", 0, 1, at_least=True)


def _fp16(
    options: argparse.Namespace, device: torch.device, recorded: dict[str, Any]
) -> Iterator[Check]:
    yield from check_fp16(device)
    yield from check_fit(device)
    yield from check_huge_scale(device)


def _main_job(
    options: argparse.Namespace, device: torch.device, recorded: dict[str, Any]
) -> Iterator[Check]:
    job = MainJob(
        options.data,
        options.model,
        options.adv,
        options.epochs,
        options.max_length,
        options.workers,
    )
    stored = options.cpu_scores
    if stored is None and replace(job, workers=None) == README_JOB and CPU_SCORES.is_file():
        stored = CPU_SCORES
    made, recorded["main_job"] = check_main_job(
        job, options.device, cpu_metrics=stored, with_cpu=options.with_cpu
    )
    yield from made


def _cost(
    options: argparse.Namespace, device: torch.device, recorded: dict[str, Any]
) -> Iterator[Check]:
    """Measure step costs; a rehearsal takes the small shape, and one step of it."""
    all_figures = recorded.setdefault("step_cost", [])
    on_gpu = device.type == "cuda"
    for shape, (length, rows) in COST.items() if on_gpu else [("minilm", (16, 4))]:
        workload = from_shape(
            shape, length=length, batch_size=rows, batches=10 if on_gpu else 1, device=device
        )
        figures = step_cost.measure(workload, "bf16", repetitions=5 if on_gpu else 1)
        all_figures.append(figures)
        peaks = {
            (variant["strategy"], variant["side"]): variant["stays_mb"] + variant["peak_step_mb"]
            for variant in figures["variants"]
        }
        for variant in figures["variants"]:
            name, fast = variant["strategy"], variant["kit_is_times_as_fast"]
            if variant["side"] != "recipe":
                continue
            # a GPU that waits for Python measures Python: speed is then only reported
            busy = on_gpu and length * rows >= 4096
            bound = RECIPE_SPEED if busy else None
            yield Check(
                f"step cost, {shape}", f"{name}, as fast as recipe", fast["median"], bound, True
            )
            yield Check(
                f"step cost, {shape}",
                f"{name}, peak memory over recipe's",
                peaks[name, "kit"] / peaks[name, "recipe"],
                PEAK_OVER_RECIPE,
            )
        del workload
        if on_gpu:
            torch.cuda.empty_cache()


PARTS: dict[str, Callable[..., Iterator[Check]]] = {
    "gradients": lambda options, device, recorded: check_gradients(device),
    "bf16": lambda options, device, recorded: check_bf16(device),
    "fp16": _fp16,
    "machinery": lambda options, device, recorded: check_machinery(device),
    "main": _main_job,
    "cost": _cost,
}


def _file(text: str) -> Path:
    path = Path(text)
    if not path.is_file():
        raise argparse.ArgumentTypeError(f"{text}: no such file")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda",
        description="Every check that needs a GPU, in one go.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--device", default="cuda", help="cuda, cuda:1; cpu rehearses")
    parser.add_argument("--parts", nargs="+", choices=PARTS, metavar="PART", help="else all")
    job = README_JOB
    parser.add_argument("--data", type=Path, default=job.data, help="competition folder")
    parser.add_argument("--model", default=job.model, help="model folder or hub name")
    parser.add_argument("--adv", default=job.adv, help="strategy of the main job")
    parser.add_argument("--epochs", type=int, default=job.epochs, help="of the main job")
    parser.add_argument(
        "--max-length", type=int, default=job.max_length, help="tokens, in the main job"
    )
    parser.add_argument("--workers", type=int, help="of the main job (else run_cv.py's choice)")
    parser.add_argument(
        "--cpu-scores",
        type=_file,
        help=f"metrics.json of the same main job on a CPU (else {CPU_SCORES.name}, if it is that)",
    )
    parser.add_argument("--with-cpu", action="store_true", help="run it on the CPU too (minutes)")
    parser.add_argument(
        "--json", type=Path, help="where figures go (else benchmarks/results, of all parts)"
    )
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
