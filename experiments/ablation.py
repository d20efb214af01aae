"""From attention across the batch to ours, one change at a time: test accuracy after 24 epochs.

    python experiments/ablation.py [ROW ...]

Runs the rows named (default: all) that ablation.csv lacks, then draws images/ablation.png.
Stopped, it goes on with the next run when started again.
"""

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from harness import COLLAPSED, Setting, read, run_all

CSV = Path(__file__).with_name("ablation.csv")
FIGURE = Path(__file__).parents[1] / "images" / "ablation.png"

OURS = Setting("ours")
MIXED = replace(
    OURS,
    name="attention across the batch",
    stem="stride 1",
    attention="per batch",
    init="default",
    max_lr=0.005,
    block_rate=1.0,
    augment=False,
)
PER_IMAGE = replace(MIXED, name="+ attention per image", attention="per image")
POOLED = replace(PER_IMAGE, name="+ overlapping max-pools", stem="max-pools")
PROJECTING = replace(POOLED, name="+ our initialisation", init="projection")
FASTER = replace(PROJECTING, name=f"+ max_lr {OURS.max_lr}", max_lr=OURS.max_lr)
CALMER = replace(FASTER, name=f"+ blocks at {OURS.block_rate} x max_lr", block_rate=OURS.block_rate)
VARIED = replace(CALMER, name="+ crop and flip", augment=True)
LADDER = [MIXED, PER_IMAGE, POOLED, PROJECTING, FASTER, CALMER, VARIED, OURS]  # ours: + last pool at stride 1
ORDER = [
    *LADDER,
    replace(OURS, name="no blocks", blocks=0),
    replace(OURS, name="linear 48 > 8 > 48, no blocks", blocks=0, bottleneck=True),
    replace(OURS, name="one block", blocks=1),
    replace(OURS, name="two blocks", blocks=2),
    replace(OURS, name="three blocks", blocks=3),
    replace(OURS, name="ours with residuals", residual=True),
]
# How many seeds a row has, if not three; a run of the first two, without pooling, takes half an hour or more.
SEEDS = {"attention across the batch": 1, "+ attention per image": 1, "+ crop and flip": 5, "ours": 5, "no blocks": 5}


def draw(rows):
    """Every run as a dot, over a bar for a row's mean, where none of its runs collapsed."""
    runs = {s.name: [float(r["accuracy"]) for r in rows if r["name"] == s.name] for s in ORDER}
    runs = {name: values for name, values in runs.items() if values}
    figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
    for height, (name, values) in enumerate(runs.items()):
        collapsed = sum(value < COLLAPSED for value in values)
        if not collapsed:
            axes.barh(height, np.mean(values), color="C0" if name == "ours" else "C7", alpha=0.7)
        axes.plot(values, [height] * len(values), "k.")
        told = f"{collapsed} of {len(values)} collapsed" if collapsed else f"{np.mean(values):.2f}  (n = {len(values)})"
        axes.text(max(values) + 1, height, told, va="center")
    axes.set_yticks(range(len(runs)), runs)
    axes.invert_yaxis()
    axes.axvline(10, color="C3", linestyle=":", label="chance")
    axes.set(title="What each change brings", xlabel="test accuracy after 24 epochs (%)", xlim=(0, 100))
    axes.legend(loc="upper right")
    figure.savefig(FIGURE)


if __name__ == "__main__":
    unknown = set(sys.argv[1:]) - {setting.name for setting in ORDER}
    if unknown:
        sys.exit(f"no row named {', '.join(unknown)}; the rows are: {', '.join(s.name for s in ORDER)}")
    chosen = [s for s in reversed(ORDER) if s.name in sys.argv[1:] or not sys.argv[1:]]  # the long rows last
    seeds = range(1, max(SEEDS.values()) + 1)
    run_all(CSV, [(setting, seed) for seed in seeds for setting in chosen if seed <= SEEDS.get(setting.name, 3)])
    draw(read(CSV))
