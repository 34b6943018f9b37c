"""Self-contained HTML pages: one file, no request to anywhere, in English and Japanese, light and dark.

A page extends `templates/base.html.j2`. Its figures are plotly figures whose colours are CSS variables
(`var(--kept)`) and whose words come in both languages (`Words.in_figure`); the page fills both in when it draws them.
"""

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


class Words(NamedTuple):
    """One statement in both languages, as plain text: templates escape it."""

    en: str
    ja: str

    @property
    def in_figure(self) -> str:
        """How the words stand inside a figure; they must not contain `|` or square brackets."""
        return f"[[{self.en}|{self.ja}]]"


def render_page(template: str, figures: Mapping[str, Any], **context: Any) -> str:
    """The HTML of a page.

    Everything in the context is escaped. Only the page's own scripts can run: it forbids all others, and every
    request, by a content security policy.

    Args:
        template: File name in `templates/`.
        figures: Plotly figures; one is drawn into each element whose attribute `data-figure` names it.
        context: What the template shows.
    """
    from plotly.offline import get_plotlyjs  # four megabytes of text

    environment = Environment(
        loader=PackageLoader("ppe_lora.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"count": _count, "percent": _percent, "decimal": _decimal, "shorten": _shorten}
    plotly = Markup(get_plotlyjs())
    draw = Markup(environment.get_template("draw.js").render())
    drawn = json.dumps({name: figure.to_plotly_json() for name, figure in figures.items()}, separators=(",", ":"))
    return environment.get_template(template).render(
        plotly=plotly,
        draw=draw,
        figures=Markup(drawn.replace("<", "\\u003c")),
        script_hashes=[_script_hash(plotly), _script_hash(draw)],
        **context,
    )


def _script_hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _count(number: int) -> str:
    return f"{number:,}"


def _percent(share: float, decimals: int = 1) -> str:
    return f"{100 * share:.{decimals}f} %"


def _decimal(number: float, decimals: int = 1) -> str:
    return f"{number:.{decimals}f}"


def _shorten(text: str, longest: int = 280) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
