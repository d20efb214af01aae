"""Stability: at which learning rates does the training collapse? The test set is not used.

    python -m experiments.collapse

Several learning rates of the network and of the blocks, several seeds each, eight epochs, measured on the validation
images. Into collapse.csv.
"""

from dataclasses import replace
from pathlib import Path

from experiments.ablation import FLIPPED
from experiments.harness import run_all

CSV = Path(__file__).with_name("collapse.csv")
STOP = 8  # epochs
RATES = [replace(FLIPPED, name=f"{multiple} x max_lr", max_lr=multiple * FLIPPED.max_lr) for multiple in (1, 3, 4.5, 6)]
FULL_RATE = replace(FLIPPED, name="3 x max_lr, the blocks at the full rate", max_lr=3 * FLIPPED.max_lr, block_rate=1.0)
FIFTH = replace(FULL_RATE, name="3 x max_lr, the blocks at a fifth of it", block_rate=0.2)
SEEDS = {RATES[0]: 10}  # how many seeds a setting has, if not three
JOBS = [(s, seed) for s in [*RATES, FIFTH, FULL_RATE] for seed in range(1, SEEDS.get(s, 3) + 1)]

if __name__ == "__main__":
    run_all(CSV, JOBS, validation=True, stop=STOP)
