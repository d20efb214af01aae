"""What untrained blocks pass on: the variance between images, and the directions of X that reach
the logits.

    python -m experiments.stall

Untrained networks and 512 training images. Into stall.csv, in a minute.
"""

import functools
import itertools
from pathlib import Path

import torch

import utils
from experiments.ablation import OURS, RESCALED, RESIDUAL, STALLED
from experiments.harness import append, build, prepare

CSV = Path(__file__).with_name("stall.csv")
UNIFORM, NO_SOFTMAX = (
    "PyTorch's initialisation, uniform rows of AM",
    "PyTorch's initialisation, no softmax: Z = V / √8",
)
NETWORKS = {STALLED.name: STALLED, UNIFORM: STALLED, NO_SOFTMAX: STALLED}  # name: setting
NETWORKS |= {setting.name: setting for setting in (RESCALED, OURS, RESIDUAL)}


def without_softmax(block, x):
    """In place of ``Ultimus.attend``: the identity matrix for the softmax, so Z = V / sqrt(8)."""
    return torch.eye(8).expand(len(x), 8, 8) / 8**0.5, block.value(x) / 8**0.5


def network(name, images):
    """The untrained network of this name."""
    model = build(NETWORKS[name], images)
    for block in model.blocks:
        if name == UNIFORM:
            torch.nn.init.zeros_(block.query.weight)
            torch.nn.init.zeros_(block.query.bias)
        if name == NO_SOFTMAX:
            block.attend = functools.partial(without_softmax, block)
    return model


def rows():
    """For each network and seed, ``utils.remaining_variance`` and ``utils.directions``."""
    (_, _, batches, *_), _ = prepare(OURS, seed=1, device=torch.device("cpu"))
    images = utils.normalize(batches.images[:512])
    for seed, name in itertools.product(range(1, 6), NETWORKS):
        torch.manual_seed(seed)
        model = network(name, images)
        shares = enumerate(utils.remaining_variance(model, images)[1:], start=1)
        shares = {f"after block {number}": f"{share:.3g}" for number, share in shares}
        yield dict(name=name, seed=seed) | shares | dict(directions=utils.directions(model, images))


if __name__ == "__main__":
    measured = list(rows())
    CSV.unlink(missing_ok=True)
    append(CSV, measured)
