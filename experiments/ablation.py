"""From the published solution to ours, step by step: test accuracy after 24 epochs.

    python -m experiments.ablation

Trains what ablation.csv and curves.csv do not have yet. Draws images/ablation.png and images/curves.png.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import utils
from experiments.harness import CHANCE, EPOCHS, Setting, append, prepare, quiet, read, run_all, values

CSV, CURVES = (Path(__file__).with_name(name) for name in ("ablation.csv", "curves.csv"))
IMAGES = Path(__file__).parents[1] / "images"

OURS = Setting("ours")
PUBLISHED = Setting("published solution rebuilt", batch_size=512, max_lr=0.005, block_rate=1.0, augment="published")
PUBLISHED = replace(PUBLISHED, stem="stride 1", head="over the batch", init="default", details="published")
BIASES = replace(PUBLISHED, name="+ our biases, constant beta1", details="ours")
PLAIN = replace(BIASES, name="+ no augmentation", augment="none")
PER_IMAGE = replace(PLAIN, name="+ attention per image", head="ultimus")
POOLED = replace(PER_IMAGE, name="+ our pools, blurs and dilation", stem="ours")
INITIALISED = replace(POOLED, name="+ our initialisation", init="projection")
FASTER = replace(INITIALISED, name="+ batch 128, max_lr 0.01", batch_size=128, max_lr=0.01)
CALMER = replace(FASTER, name="+ blocks at 0.1 x max_lr", block_rate=0.1)
LADDER = [PUBLISHED, BIASES, PLAIN, PER_IMAGE, POOLED, INITIALISED, FASTER, CALMER, OURS]  # ours: + crop and flip
BARE = replace(OURS, name="no blocks", blocks=0)
ORDER = [
    *LADDER,
    BARE,
    replace(BARE, name="MLP 48 > 64 > 48, no blocks", head="MLP"),
    replace(BARE, name="MLP 48 > 64 > 8 > 48, no blocks", head="narrow MLP"),
    replace(BARE, name="linear 48 > 8 > 48, no blocks", head="linear"),
    *(replace(OURS, name=f"{n} block{'s' * (n > 1)}", blocks=n) for n in (1, 2, 3)),
    replace(OURS, name="ours with residuals", head="residual"),
    replace(OURS, name="ours, softmax over i", head="over queries"),
    replace(OURS, name="ours with PyTorch's initialisation", init="default"),
    replace(PER_IMAGE, name="our initialisation, plain stem", init="projection"),
]
# How many seeds a row has, if not three. A run on the plain stem takes half an hour or more.
SEEDS = {setting.name: 1 for setting in ORDER if setting.stem == "stride 1"} | {PUBLISHED.name: 3}
SEEDS |= {OURS.name: 5, BARE.name: 5}
JOBS = [(setting, seed) for seed in range(1, 6) for setting in ORDER[::-1] if seed <= SEEDS.get(setting.name, 3)]
INITIALISATIONS = {"our initialisation": OURS, "PyTorch's initialisation": replace(OURS, init="default")}


def curve(name):
    """Train with one of the initialisations under seed 1: a dict of name, epoch and test accuracy (%) an epoch."""
    (model, device, batches, *rest), held_out = prepare(INITIALISATIONS[name], seed=1)
    history = []
    with quiet():
        utils.fit(model, device, batches, held_out, *rest, EPOCHS, history)
    return [dict(name=name, epoch=row["epoch"], accuracy=round(row["test_accuracy"], 2)) for row in history]


def draw(images=IMAGES):
    """Every run in ablation.csv as a dot, a row of dots for each setting."""
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(ORDER) + 1), layout="constrained")
    for height, setting in enumerate(ORDER):
        runs = values(read(CSV), setting.name)
        axes.plot(runs, [height] * len(runs), "o", color="C0" if setting == OURS else "C7", alpha=0.6)
    axes.set_yticks(range(len(ORDER)), [setting.name for setting in ORDER])
    axes.set(xlabel="test accuracy (%), one dot a run", xlim=(CHANCE, None), ylim=(len(ORDER) - 0.5, -0.5))
    axes.grid(alpha=0.3)
    figure.savefig(images / "ablation.png")
    plt.close(figure)


def draw_curves(images=IMAGES):
    """The curves of curves.csv on one axis."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for name in INITIALISATIONS:
        axes.plot(range(1, EPOCHS + 1), values(read(CURVES), name), marker=".", label=name)
    axes.axhline(CHANCE, color="C3", linestyle=":", label="chance")
    axes.set(title="The same network with two initialisations", xlabel="epoch", ylabel="test accuracy (%)", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(images / "curves.png")
    plt.close(figure)


if __name__ == "__main__":
    run_all(CSV, JOBS)
    if not CURVES.exists():
        torch.set_num_threads(1)
        append(CURVES, [row for name in INITIALISATIONS for row in curve(name)])
    draw()
    draw_curves()
