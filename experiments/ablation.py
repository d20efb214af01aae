"""From the published solution to ours, step by step: test accuracy after 24 epochs.

    python -m experiments.ablation [ROW ...]

Runs the rows named (default: all) that ablation.csv does not have yet, then draws images/ablation.png.
"""

import sys
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from experiments.harness import CHANCE, Setting, read, run_all

CSV = Path(__file__).with_name("ablation.csv")
FIGURE = Path(__file__).parents[1] / "images" / "ablation.png"

OURS = Setting("ours")
PUBLISHED = Setting(
    "published solution, to the letter",
    stem="stride 1",
    head="over the batch",
    init="default",
    details="published",
    batch_size=512,
    max_lr=0.005,
    block_rate=1.0,
    augment="published",
)
BIASES = replace(PUBLISHED, name="+ our biases, constant beta1", details="ours")
PLAIN = replace(BIASES, name="+ no augmentation", augment="none")
PER_IMAGE = replace(PLAIN, name="+ attention per image", head="ultimus")
POOLED = replace(PER_IMAGE, name="+ our pools, blurs and dilation", stem="ours")
INITIALISED = replace(POOLED, name="+ our initialisation", init="projection")
FASTER = replace(INITIALISED, name=f"+ batch {OURS.batch_size}, max_lr {OURS.max_lr}")
FASTER = replace(FASTER, batch_size=OURS.batch_size, max_lr=OURS.max_lr)
CALMER = replace(FASTER, name=f"+ blocks at {OURS.block_rate} x max_lr", block_rate=OURS.block_rate)
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


def draw():
    """Every run in ablation.csv as a dot, a row of dots for each setting."""
    rows = read(CSV)
    runs = {s.name: [float(r["accuracy"]) for r in rows if r["name"] == s.name] for s in ORDER}
    runs = {name: values for name, values in runs.items() if values}
    figure, axes = plt.subplots(figsize=(8, 0.36 * len(runs) + 1), layout="constrained")
    for height, (name, values) in enumerate(runs.items()):
        axes.plot(values, [height] * len(values), "o", color="C0" if name == OURS.name else "C7", alpha=0.6)
    axes.set_yticks(range(len(runs)), runs)
    axes.set_ylim(len(runs) - 0.5, -0.5)
    axes.set_xlim(left=CHANCE)
    axes.grid(alpha=0.3)
    axes.set_xlabel("test accuracy (%), one dot a run")
    figure.savefig(FIGURE)
    plt.close(figure)


if __name__ == "__main__":
    if unknown := set(sys.argv[1:]) - {setting.name for setting in ORDER}:
        sys.exit(f"no row named {', '.join(unknown)}; the rows are: {', '.join(s.name for s in ORDER)}")
    run_all(CSV, [job for job in JOBS if job[0].name in sys.argv[1:] or not sys.argv[1:]])
    draw()
