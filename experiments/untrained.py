"""The three questions of ``utils.diagnose``, asked of our networks before their training.

    python -m experiments.untrained

Five untrained networks of each kind and 256 training images, into untrained.csv, in minutes.
"""

from pathlib import Path

import torch

import utils
from experiments.ablation import ORDER
from experiments.harness import build, load, quiet, write

CSV = Path(__file__).with_name("untrained.csv")
SEEDS = range(1, 6)


def rows():
    """A row for each network and seed."""
    images = utils.normalize(load().train_images[:256])
    for setting in ORDER:
        for seed in SEEDS:
            torch.manual_seed(seed)
            with quiet():
                answers = utils.diagnose(build(setting), images)
            yield dict(name=setting.name, seed=seed) | answers._asdict()


if __name__ == "__main__":
    write(CSV, list(rows()))
