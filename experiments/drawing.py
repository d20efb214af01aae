"""images/network.png, the network as a chain and one ULTIMUS block opened: ``python -m experiments.drawing``."""

from pathlib import Path

import numpy as np
from matplotlib import colors, patches
from matplotlib.figure import Figure

from utils import replacing

FIGURE = Path(__file__).parents[1] / "images" / "network.png"
STAGES = [  # name, size of what leaves it
    ("image", "3 x 32 x 32"),
    *[("conv 3x3", size) for size in ("16 x 16 x 16", "32 x 8 x 8", "48 x 8 x 8")],
    ("global average", "X: 48"),
    *[("ULTIMUS", "48")] * 4,
    ("fully connected", "10"),
]
SEED, ROW, COLUMN = 101, 1, 5  # an example with large q_i, k_j, AM_ij, v_i and Z_j, which get frames; i and j from 0
# Lengths are inches, from the lower left corner.
LEFT, RIGHT, BOX, PITCH = 0.08, 1.93, 0.43, 0.77  # the stages' edges, their height and their distance
PANEL, BOTTOM, TOP = 2.3, 0.1, 7.9  # the left, lower and upper edge of the opened block
CELL, MAP = 0.32, 5.7  # a cell's side; the upper edge of AM
Q, K, V = 2.73, 4.61, 6.49  # middles of the strips; x, AM, Z and out are above and below k
GREY, ACCENT, PALE = "0.3", "C0", "#f0f6fb"
SHADES = colors.LinearSegmentedColormap.from_list("shades", ["white", ACCENT])


def example():
    """x, q, k, v, AM, Z and out of a block with random weights, as arrays: the cells' shades."""
    random = np.random.default_rng(SEED)
    x = random.random(48)
    q, k, v = random.normal(size=(3, 8, 48)) @ x / 4  # (8,) each
    shares = np.exp(np.outer(q, k))
    attention = shares / shares.sum(1, keepdims=True) / 8**0.5  # (8, 8)
    z = v @ attention  # (8,)
    return x, q[:, None], k[None], v[:, None], attention, z, random.normal(size=(48, 8)) @ z


def write(axes, x, y, text, size=17, color=ACCENT, ha="center"):
    """Text, its middle at height y."""
    axes.text(x, y, text, fontsize=size, color=color, ha=ha, va="center_baseline")


def arrow(axes, *points):
    """A line through the points, with a head at the last."""
    axes.plot(*zip(*points[:-1]), color=GREY, lw=1.8)
    style = {"arrowstyle": "-|>", "color": GREY, "lw": 1.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 15}
    axes.annotate("", points[-1], points[-2], arrowprops=style)


def cells(axes, x, top, values, width=CELL, frame=None):
    """A matrix as shaded cells, its middle at x, with a frame around the cell at (row, column)."""
    xs = x + width * (np.arange(values.shape[1] + 1) - values.shape[1] / 2)
    ys = top - CELL * np.arange(values.shape[0] + 1)
    axes.pcolormesh(xs, ys, values, cmap=SHADES, ec=ACCENT, lw=0.8)
    if frame:
        axes.add_patch(patches.Rectangle((xs[frame[1]], ys[frame[0] + 1]), CELL, CELL, fc="none", ec="black", lw=2.5))


def chain(axes):
    """All stages from top to bottom, the size of what leaves a stage below it."""
    for number, (name, size) in enumerate(STAGES):
        low = TOP - BOX - number * PITCH
        color, fill = (ACCENT, PALE) if name == "ULTIMUS" else (GREY, "white")
        if number == STAGES.index(("ULTIMUS", "48")):  # the first block is the opened one
            axes.fill_between([RIGHT, PANEL], [low, BOTTOM], [low + BOX, TOP], color=ACCENT, alpha=0.25, lw=0)
        axes.add_patch(patches.Rectangle((LEFT, low), RIGHT - LEFT, BOX, ec=color, fc=fill, lw=2))
        write(axes, (LEFT + RIGHT) / 2, low + BOX / 2, name, 16, color)
        arrow(axes, (0.4, low), (0.4, low + BOX - PITCH))
        write(axes, 0.56, low - (PITCH - BOX) / 2, size, 14, GREY, "left")


def block(axes):
    """One block: x to q, k and v; q and k to AM; AM and v to Z; Z to the output."""
    x, q, k, v, attention, z, out = example()
    axes.add_patch(patches.Rectangle((PANEL, BOTTOM), 2 * (K - PANEL), TOP - BOTTOM, fc=PALE, ec=ACCENT, lw=2))
    for name, values, top, height in (("x", x, 7.45, 7.66), ("out", out, 0.85, 0.33)):
        cells(axes, K, top, values[None], (V - Q + CELL) / 48)
        write(axes, K, height, f"{name}: 48")
    for name, values, place, top, side in (("q", q, Q, MAP, 1), ("k", k, K, MAP + 2 * CELL, 1), ("v", v, V, MAP, -1)):
        arrow(axes, (place, 7.45 - CELL), (place, top + 0.03))
        write(axes, place + 0.4 * side, 6.9, f"{name}: 8")
        write(axes, place + 0.4 * side, 6.6, "linear", 14, GREY)
        cells(axes, place, top, values, frame=(0, COLUMN) if name == "k" else (ROW, 0))
    cells(axes, K, MAP, attention, frame=(ROW, COLUMN))
    write(axes, Q + 0.9 * CELL, MAP - (ROW + 0.5) * CELL, "$i$")
    write(axes, K + (COLUMN - 3.5) * CELL, MAP + CELL / 2, "$j$")
    write(axes, K, 2.9, r"AM$_{ij}$ = softmax$_j$(q$_i$ k$_j$) / $\sqrt{8}$")
    arrow(axes, (K, 2.69), (K, 2.39))
    arrow(axes, (V, MAP - 8 * CELL), (V, 2.2), (K + 4 * CELL + 0.03, 2.2))
    cells(axes, K, 2.2 + CELL / 2, z[None], frame=(0, COLUMN))
    write(axes, K, 1.81, r"Z$_j$ = $\Sigma_i$ v$_i$ AM$_{ij}$")
    arrow(axes, (K, 1.58), (K, 0.88))
    write(axes, K + 0.4, 1.25, "linear", 14, GREY)


def draw():
    """Chain and block side by side."""
    figure = Figure(figsize=(7, 8))
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, 7), ylim=(0, 8), frame_on=False, xticks=[], yticks=[])
    chain(axes)
    block(axes)
    with replacing(FIGURE) as new:
        figure.savefig(new, dpi=150)


if __name__ == "__main__":
    draw()
