"""Draw the network, and one ULTIMUS block opened, into images/network.png.

python -m experiments.drawing
"""

from pathlib import Path

import matplotlib.pyplot as plt
from matplotlib.patches import FancyBboxPatch, Rectangle

import utils

FIGURE = Path(__file__).parents[1] / "images" / "network.png"
STAGES = [  # name, size behind it, number of boxes
    ("image", "3 x 32 x 32", 1),
    ("conv 3x3", "16 x 16 x 16", 1),
    ("conv 3x3", "32 x 8 x 8", 1),
    ("conv 3x3", "48 x 8 x 8", 1),
    ("average", "X: 48", 1),
    ("ULTIMUS", "48", 4),
    ("linear", "10", 1),
]
GREY, BLUE, PALE = "0.35", "C0", "#d7e6f4"
SIDE = 0.34  # of a cell


def box(axes, x, y, text, width=2.4, colour=GREY, fill="white"):
    """A box of height 0.8 with a word in it, its middle at (x, y)."""
    corner = (x - width / 2, y - 0.4)
    axes.add_patch(
        FancyBboxPatch(corner, width, 0.8, boxstyle="round,pad=0,rounding_size=0.15", ec=colour, fc=fill, lw=2)
    )
    axes.text(x, y, text, ha="center", va="center_baseline", fontsize=16, color=colour)


def arrow(axes, start, end):
    axes.annotate("", end, start, arrowprops=dict(arrowstyle="-|>", lw=1.8, color=GREY, shrinkA=0, shrinkB=0))


def cells(axes, x, y, rows, columns):
    """A grid of cells, its middle at x and its upper edge at y."""
    left = x - columns * SIDE / 2
    for row in range(rows):
        for column in range(columns):
            shade = PALE if (row + column) % 2 else "white"
            place = (left + column * SIDE, y - (row + 1) * SIDE)
            axes.add_patch(Rectangle(place, SIDE, SIDE, fc=shade, ec=BLUE, lw=1))


def label(axes, x, y, text, **options):
    axes.text(x, y, text, va="center", fontsize=16, color=BLUE, **options)


def chain(axes):
    """The whole network, from top to bottom."""
    y = 11.4
    for name, size, count in STAGES:
        for number in range(count):
            if y < 11.4:
                arrow(axes, (1.3, y + 0.8), (1.3, y + 0.4))
            ultimus = name == "ULTIMUS"
            box(axes, 1.3, y, name, colour=BLUE if ultimus else GREY, fill=PALE if ultimus else "white")
            if number == count - 1:
                axes.text(2.65, y, size, va="center_baseline", fontsize=14, color=GREY)
            y -= 1.2


def block(axes):
    """One block: x to q, k and v; q and k to AM; v and AM to Z; Z to the output."""
    axes.add_patch(Rectangle((4.65, 0.2), 5.95, 11.65, fc="none", ec=BLUE, lw=2, ls="--"))
    axes.plot([2.5, 4.65], [5.4, 5.4], color=BLUE, lw=2, ls="--")  # from the first block
    top = 8.0
    box(axes, 7.6, 11.2, "x: 48")
    for x, y, name in ((5.3, top + 0.75, "q"), (7.6, top + 1.35, "k"), (9.9, top + 0.75, "v")):
        arrow(axes, (7.6 + 0.35 * (x - 7.6), 10.8), (x, y + 0.3))
        label(axes, x, y, f"{name}: 8", ha="center")
    cells(axes, 5.3, top, 8, 1)
    cells(axes, 7.6, top + 0.95, 1, 8)
    cells(axes, 9.9, top, 8, 1)
    cells(axes, 7.6, top, 8, 8)
    bottom = top - 8 * SIDE
    label(axes, 7.6, bottom - 0.4, "AM[i, j] = softmax$_j$(q$_i$ k$_j$) / $\\sqrt{8}$", ha="center")
    arrow(axes, (7.6, bottom - 0.75), (7.6, bottom - 1.25))
    cells(axes, 7.6, bottom - 1.35, 1, 8)
    label(axes, 7.6, bottom - 2.2, "Z[j] = $\\Sigma_i$ v$_i$ AM[i, j]", ha="center")
    arrow(axes, (7.6, bottom - 2.55), (7.6, 1.5))
    box(axes, 7.6, 1.1, "out: 48")


def draw():
    """Both, side by side."""
    figure, axes = plt.subplots(figsize=(7, 8), layout="constrained")
    axes.set(xlim=(0, 10.7), ylim=(0, 12))
    axes.axis("off")
    chain(axes)
    block(axes)
    with utils.replacing(FIGURE) as new:
        figure.savefig(new, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    draw()
