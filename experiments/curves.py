"""How slowly a network learns that starts as PyTorch has it: test accuracy by epoch, beside ours.

    python -m experiments.curves

Trains both once under seed 1, all else equal, testing after each of the 24 epochs, into
curves.csv and images/curves.png.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

import utils
from experiments.harness import CHANCE, EPOCHS, Setting, one_thread, prepare, quiet, read, write

CSV = Path(__file__).with_name("curves.csv")
FIGURE = Path(__file__).parents[1] / "images" / "curves.png"
OURS = Setting("our start")
SETTINGS = [OURS, replace(OURS, name="PyTorch's start", init="default")]


def curve(setting):
    """Train a setting under seed 1: ``utils.fit``'s history, each row with the setting's name."""
    (model, device, batches, *rest), held_out = prepare(setting, seed=1)
    with quiet():
        history = utils.fit(model, device, batches, held_out, *rest, EPOCHS)
    return [dict(name=setting.name, epoch=row["epoch"], accuracy=round(row["test_accuracy"], 2)) for row in history]


def draw():
    """The curves of curves.csv on one axis."""
    rows = read(CSV)
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for setting in SETTINGS:
        own = [row for row in rows if row["name"] == setting.name]
        axes.plot(
            [int(row["epoch"]) for row in own], [float(row["accuracy"]) for row in own], marker=".", label=setting.name
        )
    axes.axhline(CHANCE, color="C3", linestyle=":", label="chance")
    axes.set(title="The same network from two starts", xlabel="epoch", ylabel="test accuracy (%)", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    with utils.replacing(FIGURE) as new:
        figure.savefig(new)
    plt.close(figure)


if __name__ == "__main__":
    one_thread()
    rows = read(CSV)
    for setting in SETTINGS:
        if setting.name not in {row["name"] for row in rows}:
            rows += curve(setting)
            write(CSV, rows)
    draw()
