"""Heads alone on a fixed X: which lose accuracy? Without the test set.

    python -m experiments.heads

Trains networks without blocks and ours on the 45,000 training images of the validation split, keeps the X of eight
draws of the augmentation, and trains new heads on it with the same 24 epochs. Into heads.csv.
"""

import itertools
import math
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

import utils
from experiments.ablation import BARE, LINEAR, MLP, NARROW, OURS
from experiments.harness import EPOCHS, build, collect, prepare, quiet, read

CSV = Path(__file__).with_name("heads.csv")
DRAWS, SEEDS = 8, (1, 2, 3)
SOURCES = {setting.name: setting for setting in (BARE, OURS)}  # whose X
OWN = "its own, trained with it"
HEADS = {"fully connected 48 > 10": BARE, "linear 48 > 8 > 48 before it": LINEAR, "four ULTIMUS blocks before it": OURS}
HEADS |= {setting.name: setting for setting in (NARROW, MLP)}
NEW = list(itertools.product(HEADS, SEEDS))
JOBS = list(itertools.product(SEEDS, SOURCES))


def train(model, x, labels):
    """Train the blocks and last layer of a new network on a fixed X, (images, 48) for each draw, with our rates."""
    head, size = nn.Sequential(OrderedDict(blocks=model.blocks, fc=model.fc)), OURS.batch_size
    optimizer, steps = utils.adam(head), math.ceil(len(labels) / size)
    scheduler = utils.one_cycle(optimizer, EPOCHS, steps, [OURS.max_lr, OURS.block_rate * OURS.max_lr])
    for epoch in range(EPOCHS):
        order = torch.randperm(len(labels))
        batches = list(zip(x[epoch % DRAWS][order].split(size), labels[order].split(size)))
        with quiet():
            utils.train(head, labels.device, batches, optimizer, scheduler, epoch + 1)
    return model.eval()


def rows(seed, source):
    """Held-out accuracy (%) of one network, and of three seeds of each head on its X: a list of dicts."""
    (network, device, batches, *rest), held_out = prepare(SOURCES[source], seed, validation=True)
    with quiet():
        utils.fit(network, device, batches, held_out, *rest, EPOCHS, [])
    batches.shuffle = False
    draws, (labels, *_) = zip(*(utils.predict(network, device, batches, network.features) for _ in range(DRAWS)))
    x, actual = utils.predict(network, device, held_out, network.features)

    def row(name, head_seed, model):
        accuracy = round(utils.accuracy(model.fc(model.blocks(x)), actual), 2)
        return dict(source=source, seed=seed, name=name, head_seed=head_seed, accuracy=accuracy)

    told = [row(OWN, seed, network)]
    for name, head_seed in NEW:
        torch.manual_seed(head_seed)
        model = build(HEADS[name]).to(device)
        told.append(row(name, head_seed, train(model, draws, labels)))
    return told


if __name__ == "__main__":
    done = {(int(row["seed"]), row["source"]) for row in read(CSV)}
    collect(CSV, rows, [job for job in JOBS if job not in done])
