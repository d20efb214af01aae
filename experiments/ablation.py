"""From the published solution to ours, step by step, and what one change of ours costs.

    python -m experiments.ablation

Trains what ablation.csv does not have yet. The accuracies are those on the test set after 24
epochs.
"""

from dataclasses import replace
from pathlib import Path

from experiments.harness import Setting, run_all

CSV = Path(__file__).with_name("ablation.csv")

OURS = Setting("ours")
PUBLISHED_RATES = dict(batch_size=512, max_lr=0.005, block_rate=1.0)
POOLED = Setting("attention per image, pools, no augmentation", "blurs", init="default")
POOLED = replace(POOLED, mirror=False, augment="none", **PUBLISHED_RATES)
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
RESIDUAL = replace(STALLED, name="residuals and PyTorch's initialisation", head="residual")
LINEAR = replace(OURS, name="linear 48 > 8 > 48", head="linear")

MIXING = replace(RESIDUAL, name="residuals, attention across the batch", head="across the batch")
NARROW = replace(AVERAGED, name="ours with one view, 7 x 7 pixels", stem="plain")
THROUGH_2 = replace(OURS, name="ours through 2 directions", init="through 2")
VARIANTS = [BARE, OURS, RESIDUAL, LINEAR, THROUGH_2, STALLED]
COSTS = [(RESIDUAL, MIXING), (AVERAGED, NARROW), (OURS, THROUGH_2)]  # one for each question

SEEDS = {OURS: 10, BARE: 8, LINEAR: 6, RESIDUAL: 6, FLIPPED: 5, STALLED: 5, NARROW: 2}  # else 3
ORDER = list(dict.fromkeys([*LADDER, *VARIANTS, *(network for pair in COSTS for network in pair)]))
JOBS = [(setting, seed) for setting in ORDER for seed in range(1, SEEDS.get(setting, 3) + 1)]
JOBS.sort(key=lambda job: job[1])


if __name__ == "__main__":
    run_all(CSV, JOBS)
