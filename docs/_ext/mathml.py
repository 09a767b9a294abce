"""Formulas as MathML, which every current browser draws by itself: no script, and no network.

The converter is that of docutils. A command that it does not know is a warning, with its place.
"""

from typing import Any

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging

_log = logging.getLogger(__name__)


def _converted(node: nodes.Element, *, block: bool) -> str:
    formula = node.astext()
    try:
        return tex2mathml(formula, as_block=block)
    except MathError as error:
        _log.warning(f"the formula {formula!r} is no MathML: {error}", location=node)
        return f"<code>{nodes.unescape(formula)}</code>"


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
