"""From three bad answers to our network, step by step, and what one change of ours costs.

    python -m experiments.ablation

Trains what ablation.csv does not have yet. The accuracies are those on the test set after 24
epochs.
"""

from dataclasses import replace
from itertools import product
from pathlib import Path

from experiments.harness import Setting, run_all

CSV = Path(__file__).with_name("ablation.csv")

REBUILT = "the same, rebuilt"  # of whose code the column "commit" tells
OURS = Setting("ours")
# Three questions, each answered badly or well: all eight networks. All else is the published
# training without augmentation, PyTorch's initialisation and two max-pools.
MAPS = {"one map for the batch": "across the batch", "a map for each image": ""}
VIEWS = {"tiles": "tiles", "whole image": "one"}
PATHS = {"no residual": "", "residual": "residual"}
PUBLISHED_RATES = dict(batch_size=512, max_lr=0.005, block_rate=1.0)
CUBE = []
for maps, views, path in product(MAPS, VIEWS, PATHS):
    head = ", ".join(filter(None, (MAPS[maps], PATHS[path]))) or "ultimus"
    name = f"{maps}, {views}, {path}"
    cell = Setting(name, "max-pools", head, "default", views=VIEWS[views], augment="none")
    CUBE.append(replace(cell, **PUBLISHED_RATES))
WORST, APART, WHOLE = CUBE[0], CUBE[4], CUBE[6]  # three, two and one bad answers
FORMULA = replace(
    WORST, name=f"{WORST.name}, the published formula", head="across the batch, published"
)

# One change after the other, from three bad answers to our network
INITIALISED = replace(WHOLE, name="+ our initialisation", init="projection")
POOLED = replace(INITIALISED, name="+ our pools and dilation", stem="ours")
PACED = Setting("+ our batch size and rates", augment="none", views="one")
FLIPPED = replace(PACED, name="+ crop by 2 and flip", augment="crop by 2 and flip")
MIRRORED = replace(FLIPPED, name="+ the mirror image", views="both")
LADDER = [WORST, APART, WHOLE, INITIALISED, POOLED, PACED, FLIPPED, MIRRORED, OURS]
LABELS = {  # as a step; else the name
    WORST.name: "two max-pools, one attention map for the batch, tiles of 8 x 8 pixels",
    APART.name: "+ a map for each image",
    WHOLE.name: "+ the whole image",
    OURS.name: "**ours**: crop by 4, no flip",
}

BARE = replace(OURS, name="no blocks", head="none")
STALLED = replace(OURS, name="ours with PyTorch's initialisation", init="default")
RESIDUAL = replace(STALLED, name="residuals and PyTorch's initialisation", head="residual")
LINEAR = replace(OURS, name="linear 48 > 8 > 48", head="linear")
THROUGH_2 = replace(OURS, name="ours through 2 directions", init="through 2")
DECAY = [
    replace(each, name=f"{each.name}, weight decay 0.01", weight_decay=0.01)
    for each in (OURS, STALLED)
]
VARIANTS = [BARE, OURS, RESIDUAL, LINEAR, STALLED]
OTHERS = [OURS, STALLED, THROUGH_2, *DECAY]

SEEDS = {OURS: 10, BARE: 8, LINEAR: 6, RESIDUAL: 6, STALLED: 5}
SEEDS |= dict.fromkeys(DECAY, 1)  # else 3
ORDER = list(dict.fromkeys([*CUBE, *LADDER, FORMULA, *VARIANTS, *OTHERS]))
JOBS = [(setting, seed) for setting in ORDER for seed in range(1, SEEDS.get(setting, 3) + 1)]
JOBS.sort(key=lambda job: job[1])


if __name__ == "__main__":
    run_all(CSV, JOBS)
