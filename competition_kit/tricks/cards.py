"""Method cards, read from the docstrings: for the terminal, and as one page of Markdown."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path

from competition_kit.specs import format_spec
from competition_kit.strategies import STRATEGIES
from competition_kit.tricks import TRICKS

__all__ = ["card", "catalogue", "markdown"]

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"  # there in a checkout
GROUPS: tuple[tuple[str, str, dict[str, type]], ...] = (
    ("Strategies", "--adv", dict(STRATEGIES)),
    ("Tricks", "--tricks", dict(TRICKS)),
)


def _lines(cls: type) -> list[str]:
    return (inspect.getdoc(cls) or "").splitlines()


def _cost(cls: type) -> str:
    """Return the first sentence of the card's cost."""
    field = re.search(r"^Cost: +(.*?)(?=^\S|\Z)", "\n".join(_lines(cls)), re.MULTILINE | re.DOTALL)
    text = " ".join(field.group(1).split()) if field else ""
    without_brackets = re.sub(r"\([^)]*\)", lambda found: "x" * len(found.group()), text)
    end = re.search(r"[.;]( |$)", without_brackets)
    return text[: end.start()] if end else text


def card(name: str) -> str:
    """Return a method card, headed by the spec with all defaults."""
    known = {key: cls for _, _, group in GROUPS for key, cls in group.items()}
    return "\n".join(
        [format_spec(known[name](), known), "", *_lines(known[name]), *_measured(name)]
    )


def _measured(name: str) -> list[str]:
    """Return a line for each machine on which `benchmarks.step_cost` measured this strategy."""
    lines = []
    for path in sorted(RESULTS.glob("step_cost-*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        for variant in content["variants"]:
            if (variant["strategy"], variant["side"]) == (name, "kit"):
                ratio = variant["ratio_to_plain"]
                device = content["environment"]["gpu"] or content["environment"]["cpu"]
                lines.append(
                    f"Measured:     {ratio['median']:.2f} plain steps ({ratio['min']:.2f} to "
                    f"{ratio['max']:.2f}) on {device.get('name') or device['model']}, "
                    f"{content['precision']}, {content['workload']['label']}"
                )
    return lines


def catalogue() -> str:
    """Return a line for each strategy and trick: what it does, and its cost."""
    lines: list[str] = []
    for title, flag, group in GROUPS:
        lines.append(f"{title} ({flag})")
        for name, cls in group.items():
            lines += [f"  {name:21} {_lines(cls)[0]}", f"  {'':21} cost: {_cost(cls)}"]
        lines.append("")
    return "\n".join([*lines, "method card: python run_cv.py tricks NAME"])


def markdown() -> str:
    """Return docs/tricks.md: a table, then every card."""
    lines = [
        "# Strategies and tricks",
        "",
        "Made from the docstrings by `python run_cv.py tricks --markdown > docs/tricks.md`. One unit",
        "of cost is a forward pass; a full backward pass is two, one to the embeddings alone is one.",
    ]
    for title, flag, group in GROUPS:
        lines += [
            "",
            f"## {title} (`{flag}`)",
            "",
            "| name | what it does | cost |",
            "|---|---|---|",
        ]
        lines += [f"| `{name}` | {_lines(cls)[0]} | {_cost(cls)} |" for name, cls in group.items()]
    for _, _, group in GROUPS:
        for name in group:
            lines += ["", f"### {name}", "", "```text", card(name), "```"]
    return "\n".join([*lines, ""])
