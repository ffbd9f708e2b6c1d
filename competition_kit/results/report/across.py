"""Several competitions side by side: a table for each competition's report, an overview for all."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import quote

from competition_kit.results.report.ablation_file import NOISE
from competition_kit.results.report.ablation_plots import forest_plot
from competition_kit.results.report.ablation_words import headline
from competition_kit.results.report.page import (
    markdown_table,
    render_html,
    render_markdown,
    write_both,
)
from competition_kit.results.report.wording import NOTHING, delta
from competition_kit.results.tables import score_text

__all__ = ["across_rows", "across_table", "write_overview_report"]


def write_overview_report(folder: Path, content: dict[str, Any]) -> tuple[Path, Path]:
    """Write both reports of an ablation of several competitions; return HTML and Markdown.

    Args:
        folder: `runs/ablation-<name>/`, beside the competitions' folders.
        content: its ablation.json.

    Raises:
        ModuleNotFoundError: without Jinja2 or matplotlib.
    """
    across = content["across"]
    found = [_found(number, one) for number, one in enumerate(across["competitions"])]
    shared = {"overview": content, "across": across, "found": found}
    page = render_html("overview.html.j2", **shared, across_rows=across_rows(across))
    text = render_markdown("overview.md.j2", **shared, across_table=across_table(across))
    return write_both(folder, page, text)


def across_rows(across: dict[str, Any]) -> list[dict[str, Any]]:
    """Return each arm with what every competition says of it; None where it has no such arm."""
    by_name = [{arm["arm"]: arm for arm in found["arms"]} for found in across["competitions"]]
    names = dict.fromkeys(name for arms in by_name for name in arms)
    rows = []
    for name in names:
        cells = [arms.get(name) for arms in by_name]
        roles = {arm["role"] for arm in cells if arm is not None}
        role = "exploratory" if "exploratory" in roles else ""
        rows.append({"arm": name, "role": role, "cells": cells, "noise": NOISE in roles})
    return sorted(rows, key=lambda row: row["noise"])  # as in the other tables: A/A last


def across_table(across: dict[str, Any]) -> str:
    """Return the same as a table in Markdown."""
    ranks = across["ranks"]
    header = ["arm", *(["mean rank"] if ranks else [])]
    header += [
        f"{found['competition']['name']}, {found['competition']['metric']}"
        for found in across["competitions"]
    ]
    rows = []
    for row in across_rows(across):
        name = row["arm"] + (f" ({row['role']})" if row["role"] else "")
        rank = f"{ranks[row['arm']]:.2f}" if row["arm"] in ranks else NOTHING
        rows.append([name, *([rank] if ranks else []), *map(_cell, row["cells"])])
    return markdown_table(header, rows)


def _cell(arm: dict[str, Any] | None) -> str:
    if arm is None:
        return NOTHING
    if arm["role"] == "baseline":
        return score_text(arm["mean"])
    if arm["delta"] is None:
        return f"{NOTHING} ({arm['note'] or 'not compared'})"
    return f"{delta(arm)} {arm['verdict']}"


def _found(number: int, one: dict[str, Any]) -> dict[str, Any]:
    """Return what the overview shows of a competition."""
    arms, design = one["arms"], one["design"]
    shown = [arm for arm in arms if arm["delta"] is not None and arm["role"] != "baseline"]
    said = headline(
        {
            "arms": arms,
            "equal_compute": [],
            "design": design,
            "cell_commits": [],
            "cut_batches": [],
        }
    )
    metric = one["competition"]["metric"]
    forest = forest_plot(f"forest{number}", shown, design["rope"], design["level"], metric)
    return {
        **one,
        "headline": said,
        "forest": forest if shown else None,
        "report": quote(f"../{one['folder']}/report.html"),
    }
