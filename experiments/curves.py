"""Test accuracy by epoch with our initialisation and with PyTorch's.

    python -m experiments.curves

Trains both once under seed 1, into curves.csv and images/curves.png.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import utils
from experiments.harness import CHANCE, EPOCHS, Setting, append, prepare, quiet, read

CSV = Path(__file__).with_name("curves.csv")
FIGURE = Path(__file__).parents[1] / "images" / "curves.png"
OURS = Setting("our initialisation")
SETTINGS = [OURS, replace(OURS, name="PyTorch's initialisation", init="default")]


def curve(setting):
    """Train a setting under seed 1: its name, epoch and test accuracy (%) for each epoch."""
    (model, device, batches, *rest), held_out = prepare(setting, seed=1)
    history = []
    with quiet():
        utils.fit(model, device, batches, held_out, *rest, EPOCHS, history)
    return [dict(name=setting.name, epoch=row["epoch"], accuracy=round(row["test_accuracy"], 2)) for row in history]


def draw():
    """The curves of curves.csv on one axis."""
    rows = read(CSV)
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for setting in SETTINGS:
        own = [row for row in rows if row["name"] == setting.name]
        axes.plot(range(1, EPOCHS + 1), [float(row["accuracy"]) for row in own], marker=".", label=setting.name)
    axes.axhline(CHANCE, color="C3", linestyle=":", label="chance")
    axes.set(title="The same network with two initialisations", xlabel="epoch", ylabel="test accuracy (%)", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(FIGURE)
    plt.close(figure)


if __name__ == "__main__":
    torch.set_num_threads(1)
    for setting in SETTINGS:
        if setting.name not in {row["name"] for row in read(CSV)}:
            append(CSV, curve(setting))
    draw()
