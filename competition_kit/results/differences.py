"""What tells runs apart besides their names: the settings in which they differ, in few words."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from competition_kit.approach import Approach
from competition_kit.errors import InputError
from competition_kit.specs import spec_names

__all__ = ["Setting", "differences", "settings_of"]

HASH_DIGITS = 8
OWN_WORDS = {  # keys of an arm that are not shown as they stand
    *("strategy", "tricks", "pseudo", "model", "model_hash", "training", "data_hash", "fold_hash")
}


@dataclass(frozen=True)
class Setting:
    """A setting of a run.

    Attributes:
        text: its value, for people.
        told: what a reader sees of it anyway, in the run's name or in another setting. It is
            worth saying only between runs where this is the same.
    """

    text: str
    told: Hashable = None


def settings_of(config: Mapping[str, Any], seeds: Sequence[int]) -> dict[str, Setting]:
    """Return the settings of a run, in the order in which they are shown.

    Args:
        config: its config.json; one without an arm (an ensemble's) has none.
        seeds: those that its results were made of.
    """
    arm = config.get("arm")
    if arm is None:
        return {}
    split = config.get("rules", {}).get("cv", {})
    plain = {
        **arm["training"],
        **{key: value for key, value in arm.items() if key not in OWN_WORDS},
        **{key: split[key] for key in ("scheme", "folds") if key in split},
    }
    strategy, tricks = arm["strategy"], arm.get("tricks", "")
    found = {
        "": Setting(_said(strategy, tricks), (*spec_names(strategy), "", *spec_names(tricks))),
        "encoder": Setting(arm["model"], Path(arm["model"]).name.lower()),
        **{key.replace("_", " "): Setting(_plain(value)) for key, value in plain.items()},
        "seeds": Setting(" ".join(map(str, seeds))),
        "weights": Setting(arm.get("model_hash", "")[:HASH_DIGITS], arm["model"]),
        "data": Setting(arm.get("data_hash", "")[:HASH_DIGITS]),
        "split": Setting(
            arm.get("fold_hash", "")[:HASH_DIGITS],
            (arm.get("data_hash"), *map(str, split.values())),
        ),
        "pseudo-labels": Setting(arm.get("pseudo", "")[:HASH_DIGITS]),
    }
    return {label: setting for label, setting in found.items() if setting.text}


def differences(runs: Sequence[Mapping[str, Setting]]) -> list[str]:
    """Return for each run how it differs from the others: "epochs 3, lr 0.0001"; "" if in nothing."""
    said: list[list[str]] = [[] for _ in runs]
    for label in dict.fromkeys(label for run in runs for label in run):
        having = {number: run[label] for number, run in enumerate(runs) if label in run}
        texts: dict[Hashable, set[str]] = {}
        for setting in having.values():
            texts.setdefault(setting.told, set()).add(setting.text)
        for number, setting in having.items():
            if len(texts[setting.told]) > 1:
                said[number].append(f"{label} {setting.text}".strip())
    return [", ".join(parts) for parts in said]


def _said(strategy: str, tricks: str) -> str:
    """Return strategy and tricks without what is at its default."""
    try:
        return str(Approach.of(strategy, tricks))
    except InputError:  # of another version of the kit
        return ", ".join(part for part in (strategy, tricks) if part)


def _plain(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
