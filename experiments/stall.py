"""What PyTorch's weights, the division by sqrt(8) and the softmax each take from the differences between images.

    python -m experiments.stall

New networks and 512 training images. Into stall.csv, in a minute.
"""

import itertools
from pathlib import Path

import torch
import torch.nn.functional as F

import utils
from experiments.ablation import OURS, PUBLISHED, RESIDUAL, STALLED
from experiments.harness import append, build, prepare

CSV = Path(__file__).with_name("stall.csv")
CHANGES = {  # name: gains of the weights, and whether there is a softmax
    "PyTorch's initialisation": {},
    "uniform rows in place of the softmax": dict(query=0),
    "the identity matrix in place of the softmax": dict(softmax=False),
    "no division by √8": dict(out=8**0.5),  # undoes it
    "weights of V and Out times √3": dict(value=3**0.5, out=3**0.5),
    "all three": dict(value=3**0.5, out=24**0.5, softmax=False),
}
NETWORKS = {name: (STALLED, changes) for name, changes in CHANGES.items()}  # name: (setting, changes)
NETWORKS |= {setting.name: (setting, {}) for setting in (RESIDUAL, PUBLISHED, OURS)}


def changed(model, query=1, value=1, out=1, softmax=True):
    """The model with its blocks' weights multiplied; the biases of Q, too."""
    for block in model.blocks:
        gains = {block.query.weight: query, block.query.bias: query, block.value.weight: value, block.out.weight: out}
        for tensor, gain in gains.items():
            if tensor is not None:  # the published blocks have no biases
                tensor.data *= gain
    return model if softmax else utils.without_softmax(model)


def measure(model, images, labels):
    """The share of the variance between images after each block, and what the first convolution learns.

    Returns a dict: "after block 1" to 4 as in ``utils.remaining_variance``; gradient, the norm of that of the loss at
    the first convolution; largest, the mean of the largest entry in a row of the first block's softmax (1/8: uniform).
    """
    shares = utils.remaining_variance(utils.differences(model, images))
    F.cross_entropy(model(images), labels).backward()
    attention, _ = model.blocks[0].attend(model.features(images))
    largest = (attention / attention.sum(-1, keepdim=True)).amax(-1).mean().item()
    told = {f"after block {number}": share for number, share in enumerate(shares[1:], start=1)}
    told |= dict(gradient=model.stem[0].conv.weight.grad.norm().item(), largest=largest)
    return {name: f"{value:.3g}" for name, value in told.items()}


def rows():
    (_, _, batches, *_), _ = prepare(OURS, seed=1, device=torch.device("cpu"))
    images, labels = utils.normalize(batches.images[:512]), batches.labels[:512]
    for seed, (name, (setting, changes)) in itertools.product(range(1, 6), NETWORKS.items()):
        torch.manual_seed(seed)
        yield dict(name=name, seed=seed) | measure(changed(build(setting), **changes), images, labels)


if __name__ == "__main__":
    measured = list(rows())
    CSV.unlink(missing_ok=True)
    append(CSV, measured)
