"""Predict new rows with the fold models of a stored run. Nothing is looked up anywhere else."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError

from competition_kit.data.competition import Rows
from competition_kit.data.encoding import encode
from competition_kit.data.rules import Rules
from competition_kit.data.tables import FIRST_ROW, read_table
from competition_kit.errors import InputError, did_you_mean, examples, shown
from competition_kit.harness.stored_run import FoldModel, StoredRun
from competition_kit.results.metrics import to_probabilities
from competition_kit.training.fit import predict
from competition_kit.training.model import Classifier, build_untrained, load_tokenizer

__all__ = ["predict_rows", "prediction_table", "read_rows"]

log = logging.getLogger(__name__)


def read_rows(path: Path, rules: Rules) -> Rows:
    """Read the ids and texts of a file that has the columns of the competition's test file.

    Raises:
        InputError: if a column is missing, an id is repeated, or a text is empty.
    """
    table = read_table(path, rules.encoding)
    header = [str(name) for name in table.columns]
    missing = [name for name in (rules.id, *rules.text) if name not in header]
    if missing:
        raise InputError(
            f"no column {missing[0]!r}{did_you_mean(missing[0], header)}",
            file=path,
            remedy=f"it needs the columns {examples([rules.id, *rules.text])}, as the run's test "
            "file has them",
        )
    if not len(table):
        raise InputError("has no rows below its header", file=path, remedy="add some")
    ids = table[rules.id]
    if ids.duplicated().any():
        place = int(np.flatnonzero(ids.duplicated())[0])
        raise InputError(
            f"id {shown(ids[place])} was already used",
            file=path,
            row=place + FIRST_ROW,
            column=rules.id,
            remedy="ids must be unique: drop or rename one of the two",
        )
    for name in rules.text:
        empty = np.flatnonzero(table[name].str.strip() == "")
        if len(empty):
            raise InputError(
                f"the text is empty ({shown(table[name][empty[0]])})",
                file=path,
                row=int(empty[0]) + FIRST_ROW,
                column=name,
                remedy="fill it with a placeholder such as [EMPTY], or drop the row",
            )
    columns = [table[name].tolist() for name in rules.text]
    return Rows(tuple(ids), tuple(zip(*columns, strict=True)))


def predict_rows(
    run: StoredRun,
    rows: Rows,
    *,
    device: str | None = None,
    threads: int | None = None,
    on_model: Callable[[int, int], None] = lambda done, models: None,
) -> np.ndarray:
    """Return probabilities [M, C]: the mean over the run's fold models.

    For the rows of the run's test file, with the run's own device and threads, these are the run's
    own numbers.

    Args:
        device: "cpu", "cuda" ...; None: the kind that the run was made on, if it is there.
        threads: on the CPU; None: as many as the run used.
        on_model: called with the number of models that have predicted, and of all.

    Raises:
        InputError: if the stored files do not fit each other, or the device is not there.
    """
    tokenizer = load_tokenizer(run.folder.encoder)
    encoded = encode(tokenizer, rows, run.max_length)
    if encoded.truncated:
        log.warning(
            "%d of %d texts are longer than the %d tokens that the models were trained with, and "
            "were cut",
            encoded.truncated,
            len(rows),
            run.max_length,
        )
    model = build_untrained(run.folder.encoder, len(run.classes), pooling=run.pooling)
    place = _move(model, device or _device_of(run.models))
    # another device is another arithmetic: there it is fp32, whatever the run used
    same = place.type == "cuda" if run.models[0].on_gpu else place.type == "cpu"
    precision = run.precision if same else "fp32"
    total = np.zeros((len(rows), len(run.classes)))
    every = np.arange(len(rows))
    for done, stored in enumerate(run.models):
        on_model(done, len(run.models))
        _restore(model, stored)
        with _threads(threads or stored.threads):
            logits = predict(model, encoded, every, precision=precision)
        total += to_probabilities(logits, run.multi_label) / len(run.models)
    on_model(len(run.models), len(run.models))
    return total


def prediction_table(
    ids: Sequence[str], classes: Sequence[str], probabilities: np.ndarray
) -> pd.DataFrame:
    """Return id, p_<class>...: the form of a run's test_predictions.csv."""
    table = pd.DataFrame(probabilities, columns=pd.Index([f"p_{name}" for name in classes]))
    table.insert(0, "id", np.array(ids, dtype=object))
    return table


def _device_of(models: Sequence[FoldModel]) -> str:
    return "cuda" if models[0].on_gpu and torch.cuda.is_available() else "cpu"


def _move(model: Classifier, device: str) -> torch.device:
    try:
        model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:
        raise InputError(
            f"--device {device} cannot be used ({str(error).splitlines()[0]})",
            remedy="use --device cpu, or leave it out",
        ) from error
    return torch.device(device)


def _restore(model: Classifier, stored: FoldModel) -> None:
    try:
        model.restore(stored.weights)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(
            f"the weights do not load ({str(error).splitlines()[0]})",
            file=stored.weights,
            remedy="copy the run folder again, or remove the cell and run the run's command again",
        ) from error


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
