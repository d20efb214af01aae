"""Settings around ours on the validation images (``harness.splits``), not the test set.

    python -m experiments.tuning

Where they end, into tuning.csv.
"""

from pathlib import Path

from experiments.harness import Setting, run_all

CSV = Path(__file__).with_name("tuning.csv")
DEFAULT = "PyTorch's initialisation"
TRIALS = {  # name: changes of our setting
    "none": {},
    "crop by 2": dict(augment="crop by 2"),
    "crop by 3": dict(augment="crop by 3"),
    "batch 256": dict(batch_size=256),
    "max_lr 0.007": dict(max_lr=0.007),
    "max_lr 0.015": dict(max_lr=0.015),
    "max_lr 0.03": dict(max_lr=0.03),
    "max_lr 0.03, blocks at max_lr": dict(max_lr=0.03, block_rate=1.0),
    "blocks at 0.3 x max_lr": dict(block_rate=0.3),
    DEFAULT: dict(init="default"),
    f"{DEFAULT}, max_lr 0.005": dict(init="default", max_lr=0.005),
    f"{DEFAULT}, max_lr 0.02": dict(init="default", max_lr=0.02),
    f"{DEFAULT}, blocks at 0.3 x max_lr": dict(init="default", block_rate=0.3),
    f"{DEFAULT}, blocks at max_lr": dict(init="default", block_rate=1.0),
    f"{DEFAULT}, blocks at 3 x max_lr": dict(init="default", block_rate=3.0),
}
SETTINGS = [Setting(name, **changes) for name, changes in TRIALS.items()]
RUNS = {"none": 3, "max_lr 0.03": 3, "max_lr 0.03, blocks at max_lr": 3}  # else one
JOBS = [(setting, seed) for setting in SETTINGS for seed in range(1, RUNS.get(setting.name, 1) + 1)]

if __name__ == "__main__":
    run_all(CSV, JOBS, validation=True)
