"""The floor: TF-IDF and logistic regression on the very same folds. An encoder must beat it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from competition_kit import __version__
from competition_kit.data.competition import Competition, Rows
from competition_kit.data.folds import Folds
from competition_kit.files import atomic_write, hash_json

__all__ = ["cached_floor", "floor_probabilities"]


def floor_probabilities(
    competition: Competition,
    folds: Folds,
    on_fold: Callable[[int], None] = lambda fold: None,
) -> np.ndarray:
    """Return out-of-fold probabilities [N, C] of a linear model on word and character n-grams.

    Settings were chosen beforehand and are the same for every competition; the vocabulary is
    fitted on each fold's training rows.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline, make_union

    texts = np.array(_joined(competition.train), dtype=object)
    targets, classes = competition.targets, len(competition.classes)
    oof = np.zeros((len(texts), classes))
    for fold in range(folds.count):
        train, valid = folds.training(fold), folds.validation(fold)
        features = make_union(
            TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
            TfidfVectorizer(ngram_range=(1, 4), analyzer="char_wb", sublinear_tf=True, min_df=2),
        )
        linear = LogisticRegression(
            C=4.0, solver="liblinear" if classes == 2 else "lbfgs", max_iter=200
        )
        if competition.multi_label:
            present = np.flatnonzero(np.ptp(targets[train], axis=0))  # labels that vary
            model = make_pipeline(
                features,
                OneVsRestClassifier(LogisticRegression(C=4.0, solver="liblinear")),
            )
            model.fit(texts[train], targets[train][:, present])
            constant = targets[train].mean(axis=0)
            oof[valid] = constant
            oof[np.ix_(valid, present)] = model.predict_proba(texts[valid])
        else:
            model = make_pipeline(features, linear)
            model.fit(texts[train], targets[train])
            oof[np.ix_(valid, model.classes_)] = model.predict_proba(texts[valid])
        on_fold(fold)
    return oof


def _joined(rows: Rows) -> list[str]:
    """Return each row as one text; the two texts of a pair follow each other."""
    return [" ".join(texts) for texts in rows.texts]


def cached_floor(
    folder: Path,
    competition: Competition,
    folds: Folds,
    on_fold: Callable[[int], None] = lambda fold: None,
) -> np.ndarray:
    """Return `floor_probabilities`, computed once for each data set and folds."""
    path = folder / f"{hash_json([competition.data_hash, folds.hash, __version__])[:16]}.npy"
    if path.is_file():
        return np.load(path, allow_pickle=False)
    probabilities = floor_probabilities(competition, folds, on_fold)
    with atomic_write(path, "wb") as file:
        np.save(file, probabilities)
    return probabilities
