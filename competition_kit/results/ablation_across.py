"""The ablations of several competitions side by side: deltas, and whether arms help in general."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from competition_kit.results.statistics import across_data_sets

__all__ = ["side_by_side"]

RANKED = ("baseline", "arm", "pair")  # what was declared; whoever came later was chosen by a look
SHOWN = (*RANKED, "exploratory", "a/a")
COMPETITION = ("name", "title", "metric", "greater_is_better", "train_rows")
DESIGN = (
    *("folds", "seeds", "level", "rope", "too_small"),
    *("missing", "complete", "seeds_added_after_a_look"),
)
NUMBERS = ("arm", "role", "mean", "delta", "low", "high", "p_holm", "verdict", "note")


def side_by_side(contents: Sequence[Mapping[str, Any]], folders: Sequence[str]) -> dict[str, Any]:
    """Return what ablation.json says of several competitions, the same in each of their files.

    Arms are ranked where every competition compared them, by the baseline's score plus their
    paired delta, so that missing cells favour nobody.

    Args:
        contents: of each competition's ablation.json.
        folders: of these, relative to the folder of all runs.
    """
    table = pd.DataFrame({content["competition"]["name"]: _scores(content) for content in contents})
    compared = table.T.dropna(how="all")
    ranked = compared.dropna(axis=1)
    found = across_data_sets(ranked)
    lost = [name for name in table.index if name not in ranked.columns]
    text = found.text
    if lost:
        text += f"; not everywhere compared, so not ranked: {', '.join(lost)}"
    return {
        "text": text,
        "p_value": found.p_value,
        "ranks": found.ranks,
        "not_ranked": lost,
        "competitions": [
            {
                "folder": folder,
                "competition": {key: content["competition"][key] for key in COMPETITION},
                "design": {key: content["design"][key] for key in DESIGN},
                "arms": [
                    {key: arm[key] for key in NUMBERS}
                    for arm in content["arms"]
                    if arm["role"] in SHOWN
                ],
            }
            for content, folder in zip(contents, folders, strict=True)
        ],
    }


def _scores(content: Mapping[str, Any]) -> dict[str, float]:
    """Return each declared arm's score, greater is better; NaN where it has no delta."""
    sign = 1 if content["competition"]["greater_is_better"] else -1
    arms = [arm for arm in content["arms"] if arm["role"] in RANKED]
    base = next(arm["mean"] for arm in arms if arm["role"] == "baseline")
    if base is None or all(arm["delta"] is None for arm in arms):
        return {arm["arm"]: math.nan for arm in arms}
    gains = {arm["arm"]: 0.0 if arm["role"] == "baseline" else arm["delta"] for arm in arms}
    return {name: math.nan if gain is None else sign * base + gain for name, gain in gains.items()}
