"""How the rates and the last max-pool were chosen: validation accuracy after 24 epochs, the test set untouched.

    python experiments/tuning.py

Trains on 45,000 training images and measures on the other 5,000 (the last of a fixed
shuffle), into tuning.csv.
"""

from dataclasses import replace
from pathlib import Path

from harness import Setting, run_all

CSV = Path(__file__).with_name("tuning.csv")
OURS = Setting("ours")
SETTINGS = [OURS, replace(OURS, name="last max-pool at stride 2", stem="max-pools")]
SETTINGS += [replace(OURS, name=f"blocks at {rate} x max_lr", block_rate=rate) for rate in (0.1, 0.4, 1.0)]
SETTINGS += [replace(OURS, name=f"max_lr {rate}", max_lr=rate) for rate in (0.01, 0.02)]
JOBS = [(setting, seed) for seed in (1, 2) for setting in SETTINGS]

if __name__ == "__main__":
    run_all(CSV, JOBS, validation=True)
