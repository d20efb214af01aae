"""From the published solution to ours, step by step, and what else could stand in the blocks'
place.

    python -m experiments.ablation

Trains what ablation.csv does not have yet, then draws images/curves.png and images/steps.png. The
accuracies are those on the test set after 24 epochs.
"""

import json
import statistics
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from experiments.harness import EPOCHS, Setting, curves, read, run_all, values

CSV = Path(__file__).with_name("ablation.csv")
IMAGES = Path(__file__).parents[1] / "images"

OURS = Setting("ours")
POOLED = Setting(
    "attention per image, pools, no augmentation", "blurs", init="default", mirror=False
)
POOLED = replace(
    POOLED, batch_size=512, max_lr=0.005, block_rate=1.0, augment="none"
)  # the published rates
INITIALISED = replace(POOLED, name="+ our initialisation", init="projection")
FASTER = replace(INITIALISED, name="+ batch 128, max_lr 0.01", batch_size=128, max_lr=0.01)
CALMER = replace(FASTER, name="+ blocks at 0.1 x max_lr", block_rate=0.1)
FLIPPED = replace(CALMER, name="+ crop by 2 and flip", augment="crop by 2 and flip")
AVERAGED = replace(FLIPPED, name="+ pools of weights 1-1-1, not 1-2-1", stem="ours")
MIRRORED = replace(AVERAGED, name="+ the mirror image", mirror=True)
LADDER = [POOLED, INITIALISED, FASTER, CALMER, FLIPPED, AVERAGED, MIRRORED, OURS]
LABELS = {OURS: "ours: crop by 4, no flip"}  # as a step; else the name
BARE = replace(OURS, name="no blocks", head="none")
STALLED = replace(OURS, name="ours with PyTorch's initialisation", init="default")
RESCALED = replace(STALLED, name="PyTorch's initialisation, variance kept", init="rescaled")
RESIDUAL = replace(STALLED, name="residuals and PyTorch's initialisation", head="residual")
LINEAR = replace(OURS, name="linear 48 > 8 > 48", head="linear")
VARIANTS = [BARE, STALLED, RESCALED, OURS, RESIDUAL, LINEAR]
ORDER = list(dict.fromkeys(LADDER + VARIANTS))
STORY = {  # four rows of README.md: what it calls them; name and colour of the curve
    BARE: ("no blocks", "no blocks", "C7"),
    STALLED: (
        "the assignment's four blocks, PyTorch's initialisation",
        "PyTorch's\ninitialisation",
        "C1",
    ),
    OURS: ("**the same four blocks, our initialisation: this repository**", "ours", "C0"),
    RESIDUAL: ("four blocks with residuals, PyTorch's initialisation", "residuals", "C2"),
}
RUNS = {setting.name: 5 for setting in (FLIPPED, STALLED)} | {
    OURS.name: 10,
    BARE.name: 8,
    LINEAR.name: 6,
}
RUNS |= {RESIDUAL.name: 6}  # else three
JOBS = [
    (setting, seed)
    for seed in range(1, 11)
    for setting in ORDER[::-1]
    if seed <= RUNS.get(setting.name, 3)
]


def save(figure, path):
    """Save a figure. The file's comment has what it shows, so that a test sees whether it is
    stale."""
    (axes,) = figure.axes
    shown = [text.get_text() for text in axes.texts] + [
        line.get_xydata().round(2).tolist() for line in axes.lines
    ]
    figure.savefig(path, metadata={"Comment": json.dumps(shown)})
    plt.close(figure)


def draw_curves(rows, path):
    """The test accuracy after each epoch: for each network of ``STORY`` the mean, and a band from
    lowest to highest."""
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    epochs, height = range(1, EPOCHS + 1), 0
    for setting in sorted(STORY, key=lambda setting: statistics.mean(values(rows, setting.name))):
        _, name, colour = STORY[setting]
        runs = list(zip(*curves(rows, setting.name)))
        means = [statistics.mean(run) for run in runs]
        axes.fill_between(
            epochs, list(map(min, runs)), list(map(max, runs)), color=colour, alpha=0.2, linewidth=0
        )
        axes.plot(epochs, means, color=colour, linewidth=2.5)
        height = max(means[-1], height + 5.5)  # of the name, above the one below
        axes.text(EPOCHS + 0.5, height, f"{means[-1]:.2f}  {name}", color=colour, va="center")
    axes.set(
        xlabel="epoch",
        ylabel="test accuracy (%)",
        xlim=(1, EPOCHS),
        ylim=(20, 96),
        yticks=range(20, 81, 10),
    )
    axes.spines[["top", "right"]].set_visible(False)
    save(figure, path)


def draw_steps(rows, path):
    """A bar for each step from the published solution to ours: the mean accuracy with one view and
    with both."""
    figure, axes = plt.subplots(figsize=(8, 7.5), layout="constrained")
    others = {
        row["repository"]: float(row["accuracy"]) for row in read(CSV.with_name("published.csv"))
    }
    best, published = max(others.values()), others["shreyash-99/EVA8"]
    bars = [("published solution", published, published)]
    for setting in LADDER:
        views = (
            statistics.mean(values(rows, setting.name, column))
            for column in ("accuracy", "mirrored")
        )
        bars.append((LABELS.get(setting, setting.name), *views))
    for place, (name, one, both) in enumerate(bars):
        axes.barh(place, both, height=0.35, color="C0" if place else "C7", alpha=0.35)
        axes.barh(place, one, height=0.35, color="C0" if place else "C7")
        axes.text(0, place - 0.37, name, va="center")
        axes.text(
            both + 1, place, f"{one:.2f} / {both:.2f}" if place else f"{one:.2f}", va="center"
        )
    axes.axvline(best, color="C7", linestyle=":", zorder=0)
    axes.text(best + 1, 0, f"best of the others: {best:.2f}", va="center", color="C7")
    axes.set(
        xlabel="test accuracy (%), one view / mean of both views",
        xlim=(0, 105),
        ylim=(len(bars) - 0.6, -0.7),
    )
    axes.set(yticks=[], xticks=range(0, 81, 20))
    axes.spines[["left", "top", "right"]].set_visible(False)
    save(figure, path)


def draw(images=IMAGES):
    """Both figures of ablation.csv, into a folder."""
    with plt.rc_context({"font.size": 15}):  # legible on a phone
        rows = read(CSV)
        draw_curves(rows, images / "curves.png")
        draw_steps(rows, images / "steps.png")


if __name__ == "__main__":
    run_all(CSV, JOBS)
    draw()
