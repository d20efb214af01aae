"""Where the public solutions of this assignment end on the test set, and where ours does.

    python -m experiments.published

Draws images/published.png from ablation.csv (ours) and published.csv: one row for each solution, as
its own log has it, with the commit and the file that were read.
"""

import statistics
from pathlib import Path

import matplotlib.pyplot as plt

from experiments import ablation
from experiments.harness import read, values

CSV = Path(__file__).with_name("published.csv")
CHANCE = 10  # per cent, of ten classes
DOT = 2.2  # the width of a dot on the accuracy axis, so that stacked dots touch
NAMED = [
    "shreyash-99",
    "MPGarg",
    "abhyuditjain",
    "ajinkyakhadilkar",
]  # from the left, so that no line crosses a name


def draw(images=ablation.IMAGES):
    """Every solution of published.csv as a dot over its test accuracy at the end, and the mean of
    ours."""
    ours = statistics.mean(values(read(ablation.CSV), "ours"))
    rows = sorted(read(CSV), key=lambda row: -float(row["accuracy"]))
    field = [float(row["accuracy"]) for row in rows]
    levels = []  # of each dot, the lowest at which it overlaps no earlier one
    for value in field:
        taken = {level for level, other in zip(levels, field) if abs(value - other) < DOT}
        levels.append(min(set(range(len(field))) - taken))
    figure, axes = plt.subplots(figsize=(8, 3), layout="constrained")
    axes.plot(field, levels, "o", color="C7", markersize=12)
    axes.plot(ours, 0, "o", color="C0", markersize=16)
    axes.text(ours, 0.7, f"ours\n{ours:.2f}", ha="center", fontsize=18, color="C0", weight="bold")
    heap = sum(abs(value - CHANCE) < 1 for value in field)
    axes.axvline(CHANCE, color="C3", linestyle=":", zorder=0)
    axes.text(
        CHANCE + 2,
        heap - 1,
        f"chance: {heap} of {len(field)}",
        va="center",
        fontsize=16,
        color="C3",
    )
    for row, value, level in zip(rows, field, levels):
        owner = row["repository"].split("/")[0]
        if owner in NAMED:
            height = heap - 1 - 1.5 * NAMED.index(owner)
            axes.vlines(value, level, height + 0.5, color="C7")
            axes.text(value + 0.7, height, owner, va="center", fontsize=16)
    axes.set(xlim=(0, 90), ylim=(-0.8, heap), yticks=[])
    axes.set_xlabel("test accuracy of each public solution (%)", fontsize=16)
    axes.tick_params(labelsize=15)
    axes.spines[["left", "top", "right"]].set_visible(False)
    ablation.save(figure, images / "published.png")


if __name__ == "__main__":
    draw()
