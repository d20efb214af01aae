"""How max_lr was chosen: validation accuracy after 24 epochs, the test set untouched.

    python experiments/tuning.py

Trains on 45,000 training images and measures on the other 5,000 (the last of a fixed
shuffle), into tuning.csv.
"""

from dataclasses import replace
from pathlib import Path

from harness import Setting, run_all

CSV = Path(__file__).with_name("tuning.csv")
OURS = Setting("ours")
JOBS = [(replace(OURS, name=f"max_lr {rate}", max_lr=rate), seed) for seed in (1, 2) for rate in (0.01, 0.015, 0.02)]

if __name__ == "__main__":
    run_all(CSV, JOBS, validation=True)
