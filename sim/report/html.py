"""One self-contained page: no network, no server, light and dark.

Plotly is written into the page once. A content security policy lets nothing run but the page's own two scripts,
named by their hashes, and nothing be fetched. Text goes through jinja2's autoescaping.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from hashlib import sha256
from importlib.resources import files
from typing import Any

from sim.report.figure import Figure


@dataclass(frozen=True, slots=True)
class Tile:
    """A headline number."""

    name: str
    value: str
    unit: str = ""
    more: str = ""


class Toned(str):
    """A table cell in a colour: ``best``, ``same`` as the best, or ``heat1`` to ``heat4``, ever farther from it."""

    __slots__ = ("tone",)
    tone: str

    def __new__(cls, text: str, tone: str) -> "Toned":
        """A cell of this text."""
        cell = super().__new__(cls, text)
        cell.tone = tone
        return cell


class Best(Toned):
    """A table cell that wins its column."""

    __slots__ = ()

    def __new__(cls, text: str) -> "Best":
        """A cell of this text."""
        return super().__new__(cls, text, "best")  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class Table:
    """A table of words."""

    rows: Sequence[Sequence[str]]
    headings: Sequence[str] = ()
    title: str = ""
    style: str = ""  # "facts": words rather than numbers; "wide": as wide as the page
    is_folded: bool = False


@dataclass(frozen=True, slots=True)
class Section:
    """Part of a page under a heading: tables, then charts."""

    id: str
    title: str
    lead: str = ""
    figures: Sequence[Figure] = ()
    tables: Sequence[Table] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """What a page says."""

    title: str
    heading: str
    lead: str
    sections: Sequence[Section]
    verdict: Sequence[str] = ()
    mood: str = ""  # good, fair or poor
    tiles: Sequence[Tile] = ()
    warnings: Sequence[str] = ()
    footer: str = (
        "Made by kvtwin. Drag over a chart to zoom, double-click to return. Every time on this page is simulated; "
        "each run's report says where its costs come from."
    )


def render(page: Page) -> str:
    """The page's HTML text, about 5 MB of which are Plotly."""
    from markupsafe import Markup

    template, plotly_js, plotly_hash, page_js, css = _parts()
    figures = [
        {"id": f"plot-{figure.id}", "traces": figure.traces, "layout": figure.layout, "height_px": figure.height_px}
        for section in page.sections
        for figure in section.figures
    ]
    marked = {  # written by us or escaped here, so not to be escaped again
        "css": css,
        "plotly_js": plotly_js,
        "page_js": page_js,
        "figures_json": json.dumps(figures, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
    }
    text: str = template.render(
        page=page,
        script_hashes=[plotly_hash, _csp_hash(page_js)],
        **{name: Markup(part) for name, part in marked.items()},  # noqa: S704
    )
    return text


@cache
def _parts() -> tuple[Any, str, str, str, str]:
    """What is the same on all pages, read once: a sweep writes many, each with 5 MB of it.

    Template, Plotly, its hash, our script, our style.
    """
    from jinja2 import Environment

    ours = files("sim.report")
    plotly_js = (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
    texts = {name: (ours / name).read_text(encoding="utf-8") for name in ("page.html", "page.js", "page.css")}
    template = Environment(autoescape=True, trim_blocks=True).from_string(texts["page.html"])
    return template, plotly_js, _csp_hash(plotly_js), texts["page.js"], texts["page.css"]


def _csp_hash(script: str) -> str:
    return b64encode(sha256(script.encode()).digest()).decode()
