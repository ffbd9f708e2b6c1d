"""Templates to pages. Whatever a template inserts is escaped, in HTML and in Markdown alike."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from competition_kit.files import atomic_write
from competition_kit.results.tables import duration, score_text

if TYPE_CHECKING:
    import jinja2

__all__ = [
    "escape_markdown",
    "fenced",
    "markdown_table",
    "render_html",
    "render_markdown",
    "write_both",
]


def render_html(template: str, **content: Any) -> str:
    """Return a page from a template of this folder.

    Raises:
        ModuleNotFoundError: without Jinja2.
    """
    return _environment(autoescape=True).get_template(template).render(content)


def render_markdown(template: str, **content: Any) -> str:
    """Return a text from a template of this folder.

    Raises:
        ModuleNotFoundError: without Jinja2.
    """
    return _environment(finalize=escape_markdown).get_template(template).render(content)


def write_both(folder: Path, page: str, text: str) -> tuple[Path, Path]:
    """Write `report.html` and `report.md` into a folder; return their paths."""
    html, markdown = folder / "report.html", folder / "report.md"
    for path, written in ((html, page), (markdown, text)):
        with atomic_write(path) as file:
            file.write(written)
    return html, markdown


class _Verbatim(str):
    """Markdown that needs no more escaping."""


def fenced(text: str) -> str:
    """Return a block of code in Markdown, whatever the text holds."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return _Verbatim(f"{fence}\n{text}\n{fence}")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table in Markdown of any texts; all columns but the first are right-aligned."""
    rule = "|---|" + "---:|" * (len(header) - 1)
    lines = [f"| {' | '.join(map(escape_markdown, line))} |" for line in (header, *rows)]
    return _Verbatim("\n".join([lines[0], rule, *lines[1:]]))


def escape_markdown(value: Any) -> str:
    """Return a value as one line that Markdown shows as it stands, in a table's cell too."""
    if isinstance(value, _Verbatim):
        return value
    line = " ".join(str(value).split())
    line = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", line.replace("\\", "\\\\"))
    return re.sub(r"([`*<>#|~$&]|\](?=[(\[:]))", r"\\\1", line)


def _environment(**options: Any) -> jinja2.Environment:
    import jinja2

    from competition_kit.results.report import wording

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **options,
    )
    environment.filters.update({name: getattr(wording, name) for name in wording.__all__})
    environment.filters.update(score=score_text, duration=duration, fenced=fenced)
    return environment
