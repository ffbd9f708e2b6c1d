"""What will be computed and where it will stand: folds, tokens, the arm and its folder."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from pathlib import Path

from competition_kit.data.competition import Competition, Rows, slug
from competition_kit.data.folds import Folds, load_or_make_folds
from competition_kit.errors import InputError
from competition_kit.files import hash_json
from competition_kit.harness.cells import Arm, Cell, ExtraRows
from competition_kit.harness.run_folder import RunFolder
from competition_kit.model_source import ModelSource
from competition_kit.specs import spec_names
from competition_kit.training.recipe import Recipe, optimizer_steps

__all__ = ["Plan", "make_plan", "tokens_of"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """A run before it starts: what will be computed, and where it will stand.

    Attributes:
        folder: of the arm.
        encoded: file with the tokens of all training and test rows.
        steps: optimizer steps of each cell.
        extra: pseudo-labelled rows of each fold, or nothing.
    """

    competition: Competition
    folds: Folds
    arm: Arm
    source: ModelSource
    seeds: tuple[int, ...]
    folder: RunFolder
    encoded: Path
    steps: dict[Cell, int]
    extra: tuple[ExtraRows, ...] = ()

    @property
    def cells(self) -> list[Cell]:
        return list(self.steps)


def make_plan(
    competition: Competition,
    source: ModelSource,
    *,
    strategy: str,
    tricks: str,
    recipe: Recipe,
    pooling: str,
    dropout: float,
    max_length: int,
    seeds: tuple[int, ...],
    out: Path,
) -> Plan:
    """Fix the folds, tokenise (or find the tokens of an earlier run), and name the arm's folder.

    Raises:
        InputError: if the settings do not fit the encoder or the data.
    """
    if max_length > source.max_length:
        raise InputError(
            f"--max-length {max_length}, but {source.name} takes {source.max_length} tokens",
            remedy=f"use --max-length {source.max_length} or less",
        )
    home = out / competition.name
    rules = competition.rules.cv
    split = hash_json([competition.data_hash, asdict(rules), _groups(competition)])[:8]
    folds = load_or_make_folds(
        home / "folds" / f"{rules.scheme}-{rules.folds}-{split}.csv", competition
    )
    arm = Arm(
        model=source.name,
        model_hash=source.hash,
        strategy=strategy,
        tricks=tricks,
        pooling=pooling,
        dropout=dropout,
        max_length=max_length,
        training=asdict(recipe),
        data_hash=competition.data_hash,
        fold_hash=folds.hash,
    )
    name = "-".join([source.short_name, *spec_names(strategy), *spec_names(tricks)])
    steps = {
        Cell(seed, fold): optimizer_steps(len(folds.training(fold)), recipe)
        for seed in seeds
        for fold in range(folds.count)
    }
    return Plan(
        competition=competition,
        folds=folds,
        arm=arm,
        source=source,
        seeds=seeds,
        folder=RunFolder(home / f"{slug(name)[:60]}-{arm.hash[:8]}"),
        encoded=tokens_of(competition, source, max_length, home),
        steps=steps,
    )


def _groups(competition: Competition) -> list[list[str]]:
    """Return what the split depends on besides the data hash."""
    columns = (competition.groups, competition.predefined)
    return [[] if column is None else column.tolist() for column in columns]


def tokens_of(competition: Competition, source: ModelSource, max_length: int, home: Path) -> Path:
    """Return the file with the tokens of the training rows, then the test rows; make it once."""
    from competition_kit.data.encoding import encode
    from competition_kit.training.model import load_tokenizer

    key = hash_json([competition.data_hash, source.hash, max_length])[:16]
    path = home / "tokens" / f"{key}.safetensors"
    if not path.is_file():
        both = Rows(
            competition.train.ids + competition.test.ids,
            competition.train.texts + competition.test.texts,
        )
        encoded = encode(load_tokenizer(source.folder), both, max_length)
        if encoded.truncated:
            log.warning(
                "%d of %d texts are longer than %d tokens and were cut; --max-length changes it",
                encoded.truncated,
                len(both),
                max_length,
            )
        encoded.save(path)
    return path
