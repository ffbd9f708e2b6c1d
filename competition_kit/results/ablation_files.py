"""ablation.json, deltas.csv and across.csv: what an ablation found, for programs and spreadsheets."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from competition_kit.files import write_csv, write_json
from competition_kit.results.ablation import Row
from competition_kit.results.statistics import Comparison, Interval

__all__ = ["comparison_json", "row_json", "write_ablation", "write_overview"]

VERDICTS = ("better", "practically the same", "no evidence", "worse")


def write_ablation(folder: Path, content: dict[str, Any]) -> None:
    """Write deltas.csv, then ablation.json, which says that there is a result."""
    write_csv(folder / "deltas.csv", _table(content["arms"]))
    write_json(folder / "ablation.json", content)


def write_overview(
    folder: Path, content: dict[str, Any], contents: Sequence[Mapping[str, Any]]
) -> None:
    """Write the same of several competitions together, and across.csv: one line for each arm.

    Args:
        content: with the key `across`, of `side_by_side`.
        contents: of each competition's ablation.json.
    """
    tables = []
    for found in contents:
        table = _table(found["arms"])
        for key in ("metric", "name"):
            table.insert(0, {"name": "competition"}.get(key, key), found["competition"][key])
        tables.append(table)
    write_csv(folder / "deltas.csv", pd.concat(tables, ignore_index=True))
    write_csv(folder / "across.csv", _across_table(content["across"]))
    write_json(folder / "ablation.json", content)


def row_json(row: Row) -> dict[str, Any]:
    """Return one arm as ablation.json has it; null stands for "not defined"."""
    arm, against = row.contrast.arm, row.contrast.against
    return _plain(
        {
            "arm": arm.name,
            "against": against.name,
            "role": row.contrast.role,
            "spec": arm.spec,
            "folder": arm.folder,
            "seeds": list(arm.seeds),
            "scores": arm.scores.tolist(),
            "mean": row.mean,
            "sd": row.sd,
            "oof": row.oof,
            **comparison_json(row.comparison),
            "p_holm": row.p_holm,
            "oof_delta": _ends(row.oof_delta),
            "ensemble_delta": _ends(row.ensemble_delta),
            "held_out": row.held_out,
            "held_out_delta": _ends(row.held_out_delta),
            "cost": row.cost,
            "verdict": row.verdict,
            "sentence": row.sentence,
            "failure": arm.failure,
        }
    )


def comparison_json(comparison: Comparison | None) -> dict[str, Any]:
    """Return the numbers of a comparison; nulls for the baseline."""
    names = ("delta", "low", "high", "p_value", "p_better", "p_same", "p_worse")
    more = ("wins", "ties", "pairs", "method", "note")
    if comparison is None:
        return dict.fromkeys((*names, *more))
    known = asdict(comparison)
    return _plain({name: known[name] for name in (*names, *more)})


def _ends(interval: Interval | None) -> dict[str, float | None] | None:
    if interval is None:
        return None
    return {"delta": interval.delta, "low": interval.low, "high": interval.high}


def _table(arms: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """Return one line per arm; what is nested gets names such as held_out_delta_low."""
    lines = []
    for arm in arms:
        line: dict[str, Any] = {}
        for key, value in arm.items():
            if key == "cost":
                line |= {f"cost_{name}": ratio for name, ratio in value.items()}
            elif key.endswith("_delta"):
                ends = value or dict.fromkeys(("delta", "low", "high"))
                line |= {
                    key if end == "delta" else f"{key}_{end}": number
                    for end, number in ends.items()
                }
            elif key == "seeds":
                line[key] = " ".join(map(str, value))
            elif key != "scores":
                line[key] = value
        lines.append(line)
    return pd.DataFrame(lines)


def _across_table(across: Mapping[str, Any]) -> pd.DataFrame:
    """Return each arm's mean rank over competitions (1 is best), and how often it was judged how."""
    verdicts: dict[str, Counter[str]] = {}
    for found in across["competitions"]:
        for arm in found["arms"]:
            counted = verdicts.setdefault(arm["arm"], Counter())
            counted.update([arm["verdict"]] if arm["verdict"] is not None else [])
    lines = [
        {
            "arm": name,
            "competitions": counted.total(),
            "mean_rank": across["ranks"].get(name),
            **{verdict.replace(" ", "_"): counted[verdict] for verdict in VERDICTS},
            "conclusion": across["text"],
        }
        for name, counted in verdicts.items()
    ]
    return pd.DataFrame(lines)


def _plain(value: Any) -> Any:
    """Return what JSON can say: null for numbers that are not defined."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value
