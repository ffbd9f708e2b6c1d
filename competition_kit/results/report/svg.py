"""From a matplotlib figure to SVG inside a page: the page's colours and font, ids of its own."""

from __future__ import annotations

import io
import re
import unicodedata
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = [
    "ACCENT",
    "BASE",
    "GOOD",
    "INK",
    "POOR",
    "QUIET",
    "RULE",
    "Picture",
    "picture",
    "shorten",
    "standalone",
]

# matplotlib knows no CSS variables: it draws with these, and the page's own take their place
INK, QUIET, RULE = "#010101", "#020202", "#030303"
ACCENT, BASE = "#040404", "#050505"  # an arm, and what it is compared with
GOOD, POOR = "#060606", "#070707"
_VARIABLES = {
    INK: "var(--ink)",
    QUIET: "var(--quiet)",
    RULE: "var(--rule)",
    ACCENT: "var(--accent)",
    BASE: "var(--base)",
    GOOD: "var(--good)",
    POOR: "var(--poor)",
}
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": QUIET,
    "axes.labelpad": 6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "errorbar.capsize": 0,
    "figure.facecolor": "none",
    "font.size": 12,
    "legend.frameon": False,
    "legend.labelcolor": QUIET,
    "svg.fonttype": "none",  # text stays text: it can be read aloud, searched and copied
    "svg.hashsalt": "kit",  # the same figure, the same bytes
    "text.color": INK,
    "text.parse_math": False,  # names may hold dollar signs
    "xtick.color": RULE,
    "xtick.labelcolor": QUIET,
    "ytick.color": RULE,
    "ytick.labelcolor": QUIET,
}
MARGIN = 8  # around a picture that stands alone: fonts differ, and nothing may stick out
_NO_METADATA = dict.fromkeys(("Date", "Creator", "Format", "Type"))  # no time, no links
_SVG = "http://www.w3.org/2000/svg"
_LINK = "{http://www.w3.org/1999/xlink}href"


class Picture:
    """A figure to draw on; `svg` once its block has ended."""

    def __init__(self, figure: Figure) -> None:
        self.figure = figure
        self.axes: Any = figure.subplots()
        self.svg = ""


@contextmanager
def picture(key: str, title: str, width: int, height: int) -> Iterator[Picture]:
    """Yield a `Picture` to draw on, its units CSS pixels.

    Args:
        key: what its ids begin with; each picture of a page needs another one.
        title: what a screen reader says, and a mouse that rests on it shows.

    Raises:
        ModuleNotFoundError: without matplotlib.
    """
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure  # the class alone: no window, no global state

    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # the user's own style was made for other papers
        matplotlib.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width / 72, height / 72), layout="constrained")
        drawn = Picture(figure)
        yield drawn
        buffer = io.BytesIO()
        with warnings.catch_warnings():
            # 好: matplotlib's own font only measures the text, the page's font draws it
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")
            # names of 24 signs as wide as a line: ugly, but no reason to have no report
            warnings.filterwarnings("ignore", message="constrained_layout not applied")
            # not savefig: it draws everything a second time, for file formats that need it
            FigureCanvasSVG(figure).print_svg(buffer, metadata=_NO_METADATA)
    drawn.svg = _inline(buffer.getvalue(), key, title)


def standalone(svg: str) -> str:
    """Return a picture as a file of its own: the page's colours and font come with it.

    It has a background, as whatever shows it may be dark where the reader's system is light.
    """
    root = ElementTree.fromstring(svg)
    left, top, width, height = (float(edge) for edge in root.get("viewBox", "0 0 1 1").split())
    frame = (left - MARGIN, top - MARGIN, width + 2 * MARGIN, height + 2 * MARGIN)
    names = ("x", "y", "width", "height")
    root.set("viewBox", " ".join(f"{edge:g}" for edge in frame))
    root.attrib.update({name: f"{edge:g}" for name, edge in zip(names[2:], frame[2:], strict=True)})
    style = ElementTree.Element(f"{{{_SVG}}}style")
    colours = (Path(__file__).parent / "colours.css").read_text(encoding="utf-8")
    style.text = f"{colours}svg {{ font-family: system-ui, sans-serif; }}"
    edges = {name: f"{edge:g}" for name, edge in zip(names, frame, strict=True)}
    paper = ElementTree.Element(f"{{{_SVG}}}rect", {**edges, "style": "fill: var(--paper)"})
    root[1:1] = [style, paper]  # after the title
    return ElementTree.tostring(root, encoding="unicode")


def shorten(name: str, limit: int = 24) -> str:
    """Return other people's text as it may stand in a picture: one line, not long, valid XML."""
    kept = (" " if unicodedata.category(sign) in ("Cc", "Cn", "Cs") else sign for sign in name)
    line = " ".join("".join(kept).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _inline(svg: bytes, key: str, title: str) -> str:
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", "http://www.w3.org/1999/xlink")
    root = ElementTree.fromstring(svg)
    for parent in root.findall(f".//{{{_SVG}}}style/.."):
        parent.clear()  # its rules would hold for the whole page
    _name_ids(root, key)
    for element in root.iter():
        element.tail = None
        if element.text and not element.text.strip():
            element.text = None
        element.attrib.update({name: _attribute(name, x) for name, x in element.attrib.items()})
    for name in ("width", "height"):
        root.set(name, root.get(name, "").removesuffix("pt"))
    root.set("role", "img")
    root.set("aria-labelledby", f"{key}-title")
    heading = ElementTree.Element(f"{{{_SVG}}}title", {"id": f"{key}-title"})
    heading.text = shorten(title, 300)
    root.insert(0, heading)
    return ElementTree.tostring(root, encoding="unicode")


def _name_ids(root: ElementTree.Element, key: str) -> None:
    """Keep the ids that something points to, under names that no other picture has."""
    written = " ".join(
        value for x in root.iter() for name, value in x.attrib.items() if name != "id"
    )
    used = dict.fromkeys(re.findall(r"url\(#([^)]+)\)|(?<!\S)#(\w+)(?!\S)", written))
    names = {a or b: f"{key}-{number}" for number, (a, b) in enumerate(used)}
    for element in root.iter():
        if (old := element.attrib.pop("id", None)) in names:
            element.set("id", names[old])
        for name, value in element.attrib.items():
            if name == _LINK:
                element.set(name, f"#{names[value[1:]]}")
            elif value.startswith("url(#"):
                element.set(name, f"url(#{names[value[5:-1]]})")


def _attribute(name: str, value: str) -> str:
    """Return an attribute with the page's colours, no font of its own, and no needless digits."""
    if name == "style":
        value = re.sub(r"font-family:[^;]*(; |$)", "", value)
        return re.sub(r"#0[1-7]{5}|#\d{6}", lambda m: _VARIABLES.get(m[0], m[0]), value)
    if name in ("d", "x", "y", "width", "height", "transform", "viewBox"):
        value = re.sub(r"\d+\.\d{3,}", lambda m: f"{float(m[0]):.2f}", value)
        return " ".join(value.split())
    return value
