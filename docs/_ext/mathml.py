"""Formulas as MathML, which every current browser draws by itself: no script, and no network.

The converter is that of docutils. A command that it does not know is a warning, with its place.
"""

import html
import re
from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_log = logging.getLogger(__name__)

# TeX's names for what docutils calls otherwise, and the single digits of \tfrac12.
_NAMES = {r"\dots": r"\ldots", r"\big": r"\bigl", r"\Big": r"\Bigl"}
_NAMED = re.compile("|".join(re.escape(name) + r"(?![A-Za-z])" for name in _NAMES))
_DIGITS = re.compile(r"\\([dt]?frac)(\d)(\d)")

# Spaces as in TeX: none around / and |, a thin one between log and t; and full size in tables.
_SPACING = [
    (re.compile(r'<mo stretchy="false">([/|])'), r'<mo stretchy="false" lspace="0" rspace="0">\1'),
    (re.compile(r"<mo>&ApplyFunction;</mo>(?=\s*<(?!mo s))"), '<mspace width="0.17em"></mspace>'),
    (re.compile(r"<mtable(?! display)"), '<mtable displaystyle="true"'),
]


def _converted(node: nodes.Element, *, block: bool) -> str:
    formula = node.astext()
    source = _NAMED.sub(lambda found: _NAMES[found[0]], formula)
    source = _DIGITS.sub(r"\\\1{\2}{\3}", source)
    try:
        written = tex2mathml(source, as_block=block)
    except MathError as error:
        _log.warning(f"the formula {formula!r} is no MathML: {error}", location=node)
        return f"<code>{html.escape(formula)}</code>"
    for pattern, spaced in _SPACING:
        written = pattern.sub(spaced, written)
    return written


def _inline(translator: Any, node: nodes.math) -> None:
    translator.body.append(f'<span class="math">{_converted(node, block=False)}</span>')
    raise nodes.SkipNode


def _block(translator: Any, node: nodes.math_block) -> None:
    translator.body.append(f'<div class="math">{_converted(node, block=True)}</div>')
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.config.html_math_renderer = "mathml"
    return {"parallel_read_safe": True, "parallel_write_safe": True}
