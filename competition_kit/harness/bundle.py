"""Export a run as a folder that predicts by itself, without network and without this kit."""

from __future__ import annotations

import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from competition_kit import __version__
from competition_kit.data.competition import Competition, Rows
from competition_kit.data.presence import is_there
from competition_kit.data.tables import find_table, read_table
from competition_kit.errors import InputError, KitError
from competition_kit.files import read_json, write_csv, write_json
from competition_kit.harness.stored_run import FoldModel, StoredRun
from competition_kit.results.members import read_test_predictions
from competition_kit.results.metrics import THRESHOLD, decide
from competition_kit.results.submission import make_submission, positive_class
from competition_kit.results.submission_check import wanted_columns
from competition_kit.training.recipe import Precision

__all__ = ["SelfTest", "export_bundle"]

log = logging.getLogger(__name__)

INFER = Path(__file__).with_name("infer.py")
SELF_TEST_ROWS = 256  # all rows of a small test file: then even the batches are those of the run
# how far a probability may be from the run's own: rounding, and other arithmetic where the run
# computed in half precision on another device
ALLOWED: dict[Precision, float] = {"fp32": 1e-4, "fp16": 0.02, "bf16": 0.1}
ALLOWED_FOR_FP16_WEIGHTS = 0.01

README = """\
{title}
{underline}

{count} fold models of the run {run}, made by competition-kit {version}, and
what they need to predict: no network, no other file, no package besides torch, transformers and
safetensors.

    python infer.py --input test.csv --output submission.csv

In a notebook without internet: upload this folder as a data set, add it to the notebook, and run

    !python /path/to/this/folder/infer.py --input /path/to/test.csv --output submission.csv

--sample sample_submission.csv    hand in its rows in its order (else in that of the input)
--probabilities FILE              write id and p_<class>... of every row, too
--device cpu, --batch-size 16     where, and how many texts at a time
--encoding gb18030                of the input, if it is not UTF-8

The input needs the columns {columns}.
The submission has the columns {submission}: {form}.

Weights: {weights}. Trained with torch {torch}, transformers {transformers}.
Self-test, in a fresh process without network: {said}.
"""

# A process that hands out no connection and no original file, then runs the script.
GUARD = """
import json, os, runpy, sys
originals, bundle, script, *arguments = sys.argv[1:]
originals = json.loads(originals)
network = ("socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "socket.sendto")

def refuse(event, details):
    if event in network:
        raise SystemExit(f"self-test: it asked for the network ({event})")
    if event == "open" and isinstance(details[0], str):
        path = os.path.realpath(details[0])
        if path.startswith(bundle + os.sep):
            return
        if any(path == original or path.startswith(original + os.sep) for original in originals):
            raise SystemExit(f"self-test: it opened an original file ({path})")

sys.addaudithook(refuse)
sys.modules["competition_kit"] = None
sys.argv = [script, *arguments]
runpy.run_path(script, run_name="__main__")
"""


@dataclass(frozen=True)
class SelfTest:
    """What a bundle predicted in a fresh process.

    Attributes:
        rows: how many were predicted.
        difference: largest one between its probabilities and the run's own.
        allowed: largest one that passes.
        changed: rows whose decision is another one.
    """

    rows: int
    difference: float
    allowed: float
    changed: int

    def __str__(self) -> str:
        if self.difference == 0:
            return f"{self.rows} rows, bit for bit the run's own predictions"
        return (
            f"{self.rows} rows, probabilities within {self.difference:.1e} of the run's own "
            f"(allowed {self.allowed:g}), {self.changed} other decisions"
        )


def export_bundle(
    run: StoredRun, competition: Competition, target: Path, *, fp16: bool = False
) -> SelfTest:
    """Write a bundle; it takes its name only when its self-test has passed.

    Args:
        competition: of the run; its test rows are what the self-test predicts.
        target: a folder that is not there yet, or empty.
        fp16: store weights in half precision, which halves the bundle (they compute in fp32).

    Raises:
        InputError: if the target is in use or cannot be written, or the competition has changed
            since the run.
        KitError: if the bundle does not predict what the run predicted.
    """
    if os.path.lexists(target) and (not target.is_dir() or any(target.iterdir())):
        raise InputError("is there already", file=target, remedy="give --to a new folder")
    if competition.data_hash != run.data_hash:
        raise InputError(
            "the competition has changed since the run, so nothing can be compared with it",
            file=competition.folder,
            remedy="give --data the folder as it was, or run the competition again",
        )
    whole = Path(os.path.realpath(target))  # "." has no name
    scratch = whole.with_name(f".{whole.name}.{os.getpid()}.tmp")
    try:
        scratch.mkdir(parents=True)
        info = _info(run, competition, fp16)
        _write_files(run, scratch, info, fp16)
        log.info("self-test of the bundle, in a fresh process without network")
        outcome = _self_test(run, competition, scratch, fp16)
        _write_readme(run, info, scratch, outcome)
        if whole.exists():
            whole.rmdir()
        scratch.rename(whole)
    except OSError as error:
        if os.path.isdir(scratch) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise  # of a file that is read
        raise InputError(
            f"cannot be written ({error.strerror})",
            file=target,
            remedy="give --to a new folder in a place that you can write to and that has room",
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return outcome


def _info(run: StoredRun, competition: Competition, fp16: bool) -> dict[str, Any]:
    """Return all that infer.py has to know."""
    rules = competition.rules
    one = rules.submission == "probability" and not competition.multi_label
    return {
        "title": rules.title,
        "run": run.folder.path.resolve().name,
        "id": rules.id,
        "text": list(rules.text),
        "encoding": rules.encoding,
        "multi_label": competition.multi_label,
        "classes": list(competition.classes),
        "submission": rules.submission,
        "columns": wanted_columns(competition),
        "positive": competition.classes[positive_class(competition)] if one else None,
        "threshold": THRESHOLD,
        "separator": rules.label_separator,
        "empty_label": rules.empty_label or "",
        "pooling": run.pooling,
        "max_length": run.max_length,
        "precision": run.precision,
        "models": [f"models/{model.cell.name}.safetensors" for model in run.models],
        "weights": "float16" if fp16 else "float32",
    }


def _write_files(run: StoredRun, folder: Path, info: dict[str, Any], fp16: bool) -> None:
    (folder / "models").mkdir()
    (folder / "encoder").mkdir()
    for model, name in zip(run.models, info["models"], strict=True):
        if fp16:
            save_file(_halved(model), folder / name)
        else:
            shutil.copyfile(model.weights, folder / name)
    for path in sorted(run.folder.encoder.iterdir()):
        if not path.name.startswith(".") and not path.is_dir() and is_there(path):
            shutil.copyfile(path, folder / "encoder" / path.name)
    config = read_json(run.folder.encoder / "config.json")
    for of_the_checkpoint in ("dtype", "torch_dtype", "_name_or_path"):  # not of the fold models
        config.pop(of_the_checkpoint, None)
    write_json(folder / "encoder" / "config.json", config)
    shutil.copyfile(INFER, folder / INFER.name)
    write_json(folder / "bundle.json", info)


def _halved(model: FoldModel) -> dict[str, np.ndarray]:
    """Return weights in half precision."""
    try:
        weights = load_file(model.weights)
    except SafetensorError as error:
        raise InputError(
            f"the weights do not load ({error})",
            file=model.weights,
            remedy="copy the run folder again, or remove the cell and run the run's command again",
        ) from error
    with np.errstate(over="ignore"):
        halved = {
            name: value.astype(np.float16) if value.dtype == np.float32 else value
            for name, value in weights.items()
        }
    for name, value in halved.items():
        if value.dtype == np.float16 and not np.isfinite(value).all():
            raise InputError(
                f"{name} holds weights beyond 65504, which half precision cannot",
                file=model.weights,
                remedy="leave out --fp16",
            )
    return halved


def _write_readme(run: StoredRun, info: dict[str, Any], folder: Path, outcome: SelfTest) -> None:
    forms = {
        "label": "labels",
        "probability": "the probability of each label"
        if info["positive"] is None
        else f"the probability of {info['positive']!r}",
        "probabilities": "the probability of each class",
    }
    versions = read_json(run.folder.config).get("versions", {})
    title = info["title"] or info["run"]
    text = README.format(
        title=title,
        underline="=" * len(title),
        count=len(run.models),
        run=info["run"],
        version=__version__,
        columns=", ".join([info["id"], *info["text"]]),
        submission=", ".join(info["columns"]),
        form=forms[info["submission"]],
        weights=info["weights"],
        torch=versions.get("torch", "(unknown)"),
        transformers=versions.get("transformers", "(unknown)"),
        said=outcome,
    )
    (folder / "README.txt").write_text(text, encoding="utf-8")


# -- self-test ------------------------------------------------------------------------------------


def _self_test(run: StoredRun, competition: Competition, bundle: Path, fp16: bool) -> SelfTest:
    """Let the bundle predict rows of which the run's own predictions are known, and compare."""
    part = _part(competition)
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        columns = list(zip(*part.test.texts, strict=True))
        table = {part.rules.id: part.test.ids, **dict(zip(part.rules.text, columns, strict=True))}
        write_csv(place / "input.csv", pd.DataFrame(table, dtype=object))
        arguments = ["--input", "input.csv", "--output", "submission.csv", "--encoding", "utf-8"]
        arguments += ["--probabilities", "probabilities.csv"]
        if part.sample is not None:
            write_csv(place / "sample.csv", part.sample)
            arguments += ["--sample", "sample.csv"]
        if not run.models[0].on_gpu:
            arguments += ["--device", "cpu"]
        _run_guarded(run, _originals(run, competition), bundle, arguments, place)
        written = read_table(place / "probabilities.csv").set_index("id")
        found = written.loc[list(part.test.ids)].to_numpy(dtype=float)
        write_csv(place / "expected.csv", make_submission(part, found))
        if not read_table(place / "submission.csv").equals(read_table(place / "expected.csv")):
            raise KitError("self-test: the bundle writes another submission than the kit")
    known = _known(run, competition, part.test)
    outcome = SelfTest(
        rows=len(found),
        difference=float(np.abs(found - known).max()),
        allowed=ALLOWED[run.precision] + ALLOWED_FOR_FP16_WEIGHTS * fp16,
        changed=int(_differ(found, known, run.multi_label).sum()),
    )
    if not outcome.difference <= outcome.allowed:
        raise KitError(
            f"self-test: the bundle does not predict what the run predicted: {outcome}; no bundle "
            "is written" + ("; leave out --fp16" if fp16 else "")
        )
    return outcome


def _part(competition: Competition) -> Competition:
    """Return the competition with the few rows that are predicted as its test rows."""
    source = competition.test if len(competition.test) else competition.train
    rows = Rows(source.ids[:SELF_TEST_ROWS], source.texts[:SELF_TEST_ROWS])
    sample = competition.sample
    if sample is not None:
        sample = sample[sample[competition.rules.id].isin(rows.ids)].reset_index(drop=True)
    return replace(competition, test=rows, sample=sample)


def _originals(run: StoredRun, competition: Competition) -> list[Path]:
    """Return what a bundle must do without: the run's folder and the competition's files."""
    stems = ("train", "test", "sample_submission")
    tables = [find_table(competition.folder, stem) for stem in stems]
    return [run.folder.path, *(path for path in tables if path is not None)]


def _run_guarded(
    run: StoredRun, originals: list[Path], bundle: Path, arguments: list[str], place: Path
) -> None:
    """Run the bundle's script where neither the network nor the originals can be reached."""
    refused = json.dumps([str(path.resolve()) for path in originals])
    script = str((bundle / INFER.name).resolve())
    done = subprocess.run(
        [sys.executable, "-c", GUARD, refused, str(bundle.resolve()), script, *arguments],
        cwd=place,
        env={
            **os.environ,
            "HF_HOME": str(place / "hub"),  # nor what a hub has left on this disk
            "OMP_NUM_THREADS": str(run.models[0].threads),  # they decide the last digits
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    if done.returncode != 0:
        last = (done.stderr.strip() or "it said nothing").splitlines()[-1]
        raise KitError(f"self-test: the bundle does not run, so none is written: {last}")


def _known(run: StoredRun, competition: Competition, rows: Rows) -> np.ndarray:
    """Return the run's own predictions of rows [n, C]."""
    if len(competition.test):
        of_all = read_test_predictions(run.folder.test_predictions, competition)
        return of_all[: len(rows)]  # the self-test takes the first ones
    from competition_kit.harness.prediction import predict_rows

    return predict_rows(run, rows)


def _differ(one: np.ndarray, other: np.ndarray, multi_label: bool) -> np.ndarray:
    """Return [n] whether two predictions of a row decide differently."""
    different = decide(one, multi_label) != decide(other, multi_label)
    return different.any(axis=1) if multi_label else different
