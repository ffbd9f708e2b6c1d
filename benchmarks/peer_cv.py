"""The folds of a competition, one after the other, with transformers' Trainer: a peer of `run_cv.py`.

What a careful competitor would write: texts tokenised once, batches of similar length, dynamic
padding, no checkpoints. `benchmarks.cv --peer` runs it.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.hf_trainer import make_trainer, texts_of
from competition_kit.data.competition import load_competition
from competition_kit.data.encoding import encode
from competition_kit.data.folds import load_or_make_folds
from competition_kit.files import write_json
from competition_kit.model_source import find_model
from competition_kit.results.metrics import find_metric, to_probabilities
from competition_kit.training.model import load_tokenizer
from competition_kit.training.recipe import default_lr

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Cross-validate; write seconds and score; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peer_cv", description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--folds", type=int, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    parser.add_argument("--epochs", type=int, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--max-length", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args(arguments)

    source = find_model(options.model)
    competition = load_competition(options.data, folds=options.folds)
    if competition.multi_label or len(competition.rules.text) > 1:
        # `texts_of` hands on one class number, and no segments
        print("error: the peer takes one label and one text in a row only", file=sys.stderr)
        return 2
    tokenizer = load_tokenizer(source.folder)
    train = encode(tokenizer, competition.train, options.max_length)
    test = encode(tokenizer, competition.test, options.max_length)
    metric = find_metric(competition.rules.metric, competition.multi_label)
    fit_seconds = predict_seconds = 0.0
    scores = []
    with tempfile.TemporaryDirectory() as name:
        folds = load_or_make_folds(Path(name) / "folds.csv", competition)
        for seed in options.seeds:
            for fold in range(folds.count):
                rows, scored = folds.training(fold), folds.validation(fold)
                trainer = make_trainer(
                    source.folder,
                    texts_of(train, rows, competition.targets),
                    classes=len(competition.classes),
                    pad_id=train.pad_id,
                    out=Path(name),
                    epochs=options.epochs,
                    lr=default_lr(source.width),
                    batch_size=options.batch_size,
                    device=options.device,
                    precision=options.precision,
                    seed=seed,
                )
                start = time.perf_counter()
                trainer.train()
                fitted = time.perf_counter()
                found: Any = trainer.predict(texts_of(train, scored, None))  # type: ignore[arg-type]
                logits = found.predictions
                if len(test):
                    trainer.predict(texts_of(test, np.arange(len(test)), None))  # type: ignore[arg-type]
                predict_seconds += time.perf_counter() - fitted
                fit_seconds += fitted - start
                probabilities = to_probabilities(np.asarray(logits), competition.multi_label)
                targets = competition.targets[scored]
                scores.append(metric.score(targets, probabilities, competition.classes))
    write_json(
        options.json,
        {
            "fit_seconds": fit_seconds,
            "predict_seconds": predict_seconds,
            "score": float(np.mean(scores)),
        },
    )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
