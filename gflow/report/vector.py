"""Figures as files in memory: SVG inside a page in the page's own ink, and SVG and PDF to keep."""

import io
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from gflow.report.style import INK, SETTINGS


class Drawn(NamedTuple):
    """A figure, drawn once.

    Attributes:
        inline: an `<svg>` element in the page's own ink, whose ids begin with the figure's name.
        svg, pdf: files to keep, in black.
    """

    inline: str
    svg: bytes
    pdf: bytes


def drawn(draw: Callable[[], Any], *, name: str, description: str) -> Drawn:
    """The figure that `draw` makes, in the stylesheet.

    Args:
        draw: makes the figure.
        name: prefix of every id in it; one a page.
        description: what the figure shows, for those who do not see it.
    """
    from matplotlib import rc_context

    text, pdf = io.StringIO(), io.BytesIO()
    with rc_context(_settings(name)):
        figure = draw()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
        figure.savefig(pdf, format="pdf", metadata={"CreationDate": None, "Creator": None})
    content = text.getvalue()
    kept = content.replace(INK, "#000000").encode()
    return Drawn(_inline(content, name, description), kept, pdf.getvalue())


def svg(draw: Callable[[], Any], *, name: str, description: str) -> str:
    """The `<svg>` element of the figure that `draw` makes; see `drawn`."""
    from matplotlib import rc_context

    text = io.StringIO()
    with rc_context(_settings(name)):
        draw().savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return _inline(text.getvalue(), name, description)


def _settings(name: str) -> Any:
    return {**SETTINGS, "svg.hashsalt": name}


def _inline(text: str, name: str, description: str) -> str:
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(INK, "currentColor")
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" class="figure" ', 1)
