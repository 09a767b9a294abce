"""The stylesheet of every figure: of reports, studies and papers, in light and dark."""

from typing import Any

# Okabe & Ito's palette, which colour-blind readers tell apart, in shades that stand out against
# white and black alike. Dashes and marks repeat what the colour says, for prints in grey.
PALETTE = ("#7f7f7f", "#0083c4", "#e69f00", "#00a878", "#d8602a", "#c06a9e", "#a89500")
STYLES = (
    "-",
    (0, (6, 1.5)),
    (0, (4, 1.5, 1, 1.5)),
    (0, (1.2, 1.2)),
    (0, (3, 1, 1, 1, 1, 1)),
    (0, (8, 2, 2, 2)),
    (0, (2, 2)),
)
MARKS = ("o", "s", "^", "D", "v", "P", "X")

INK = "#010203"
"""The colour of axes and text: that of no curve, so that a page can put its own in its place."""

LAYOUT: dict[str, Any] = {
    "savefig.dpi": 150,
    "font.size": 9.5,
    "axes.labelsize": 9.5,
    "axes.titlesize": 9.5,
    "legend.fontsize": 8.5,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.alpha": 0.15,
    "grid.linewidth": 0.6,
}
"""matplotlib's settings of every figure, whatever its size and its ink."""

SETTINGS: dict[str, Any] = LAYOUT | {
    "figure.figsize": (4.3, 2.9),
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
    "svg.fonttype": "path",
    "path.simplify_threshold": 0.5,
    "legend.handlelength": 2.6,
    "legend.labelspacing": 0.3,
    "lines.markersize": 4.0,
    "axes.facecolor": "none",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "hatch.color": INK,
}
"""matplotlib's settings of a report's figures, for `matplotlib.rc_context`."""

GUIDE: dict[str, Any] = {"color": "#7f7f7f", "linewidth": 1.0, "linestyle": ":"}
"""For the line of a prediction."""


def use_style() -> None:
    """Draws every figure of matplotlib from now on in gflow's stylesheet, as in a notebook.

    Lines take the colours and dashes of a report in turn, without the grey that it has for clean
    training. `matplotlib.rcdefaults()` undoes it.
    """
    from matplotlib import rcParams

    settings: Any = {"figure.constrained_layout.use": True, "axes.prop_cycle": cycle()}
    rcParams.update(LAYOUT | settings)


def cycle() -> Any:
    """The looks of the lines of a figure, one after the other."""
    from cycler import cycler

    return cycler(color=PALETTE[1:]) + cycler(linestyle=STYLES[1:])


def look(index: int) -> dict[str, Any]:
    """Colour and line style of the perturbation number `index`, the same in every figure."""
    place = index % len(PALETTE)
    return {"color": PALETTE[place], "linestyle": STYLES[place], "linewidth": 1.6}


def mark(index: int) -> str:
    """The mark of the perturbation number `index`."""
    return MARKS[index % len(MARKS)]
