"""Figures as SVG inside a page: in the page's own ink, with names that do not collide."""

import io
import re
from collections.abc import Callable
from typing import Any

# Colours that no palette uses; they are replaced by what the page says, light or dark.
_INK = "#010203"
_PAPER = "none"

_SETTINGS = {
    "svg.fonttype": "path",
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "legend.fontsize": 9.5,
    "text.color": _INK,
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.titlecolor": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "grid.color": _INK,
    "axes.facecolor": _PAPER,
    "figure.facecolor": _PAPER,
    "savefig.facecolor": _PAPER,
    "path.simplify_threshold": 0.5,
}


def svg(draw: Callable[[], Any], *, name: str, description: str) -> str:
    """The figure that `draw` makes, as an `<svg>` element.

    Args:
        draw: makes the figure, in the settings of the page.
        name: prefix of every id in it; one a page.
        description: what the figure shows, for those who do not see it.
    """
    from matplotlib import rc_context

    buffer = io.StringIO()
    settings = {**_SETTINGS, "svg.hashsalt": name}
    with rc_context(settings):  # pyright: ignore[reportArgumentType]
        draw().savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'\b(id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    text = text.replace(_INK, "currentColor")
    label = description.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return text.replace("<svg ", f'<svg role="img" aria-label="{label}" class="figure" ', 1)
