"""What the experiments share: the networks that they compare, one training, and a table that grows.

A ``Setting`` names everything in which two trainings may differ. ``run`` trains one
of them with the loops of ``utils.py``; ``run_all`` trains many side by side, one
core each, and appends a line to a CSV as each ends, so that a stopped experiment
goes on where it was.
"""

import contextlib
import csv
import os
import sys
import time
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import utils
from model9 import Ultimus, UltimusNet

EPOCHS, BATCH_SIZE = 24, 512
COLLAPSED = 20  # a test accuracy (%) below it: the network has fallen, or all but fallen, to chance


@dataclass(frozen=True)
class Setting:
    """One training. The defaults are those of the notebook."""

    name: str
    stem: str = "dense"  # or "max-pools": the last pool at stride 2, too; or "stride 1": no pooling at all
    attention: str = "per image"  # or "per batch": Q^T K as (8 x B)(B x 8), sqrt(8) inside
    init: str = "projection"  # or "default": PyTorch's
    max_lr: float = 0.015
    block_rate: float = 0.2  # of max_lr, for the blocks
    augment: bool = True
    blocks: int = 4
    residual: bool = False
    bottleneck: bool = False  # the linear map 48 > 8 > 48 that ours starts as, in place of the blocks


class BatchMixing(Ultimus):
    """Attention across the batch, as the published solution has it: one 8 x 8 map for all images.

    Divided by sqrt(8) before the softmax; the published code takes log_softmax and divides it.
    """

    def attention(self, x):
        k, q = self.key(x), self.query(x)  # (B, 8), (B, 8)
        return (q.T @ k / k.shape[1] ** 0.5).softmax(dim=1)  # (8 x B) x (B x 8) -> (8, 8)

    def forward(self, x):
        return self.out(self.value(x) @ self.attention(x))  # (B x 8) x (8 x 8) -> (B, 8) -> (B, 48)


class Residual(Ultimus):
    """x + block(x): outside the assignment, to see what it is worth."""

    def forward(self, x):
        return x + super().forward(x)


def build(setting):
    """The network of a setting."""
    block = Residual if setting.residual else {"per image": Ultimus, "per batch": BatchMixing}[setting.attention]
    model = UltimusNet()
    basis = model.blocks[0].key.weight.detach()
    model.blocks = nn.Sequential(*[block(basis) for _ in range(setting.blocks)])
    if setting.bottleneck:
        model.blocks = nn.Sequential(nn.Linear(48, 8), nn.Linear(8, 48))
        for layer, weight in zip(model.blocks, (basis, basis.T)):
            layer.weight.data.copy_(weight)
            nn.init.zeros_(layer.bias)
    elif setting.blocks == 0:
        model.fc.reset_parameters()  # no eight directions to begin with
    if setting.stem == "stride 1":
        for conv_pool in model.stem:
            conv_pool[1] = nn.Identity()
    elif setting.stem == "max-pools":
        model.stem[2][1].stride = 2
    if setting.init == "default":
        model = utils.with_default_init(model)
    return model


@contextlib.contextmanager
def quiet():
    """Nothing printed inside reaches the screen."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def splits(data, validation):
    """Training and held-out (images, labels): the test set, or the last 5,000 of a fixed shuffle of the others."""
    if not validation:
        return (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))
    return [(data.train_images[part], data.train_labels[part]) for part in (order[:45_000], order[45_000:])]


def prepare(setting, seed, validation=False):
    """All that a training of one setting under one seed wants.

    Args:
        validation: train on 45,000 and measure on 5,000 training images, to choose settings.

    Returns:
        (model, device, training batches, optimizer, scheduler), in the order of ``utils.train``,
        and the held-out batches.
    """
    with quiet():
        data = utils.load_cifar10()
    if data.note:
        raise RuntimeError("the experiments want the real CIFAR-10: connect to the internet or set CIFAR10_ROOT")
    training, held_out = splits(data, validation)
    utils.seed_everything(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = build(setting).to(device, memory_format=torch.channels_last)
    batches = utils.Batches(*training, device, BATCH_SIZE, True, utils.augment if setting.augment else None)
    optimizer = utils.adam(model)
    rates = [setting.max_lr, setting.block_rate * setting.max_lr]
    scheduler = utils.one_cycle(optimizer, EPOCHS, len(batches), rates)
    return (model, device, batches, optimizer, scheduler), utils.Batches(*held_out, device, BATCH_SIZE)


def run(setting, seed, validation=False, stop=EPOCHS):
    """Train one setting under one seed and measure it once, at the end.

    Args:
        validation: as in ``prepare``.
        stop: leave the 24-epoch schedule after this many epochs.

    Returns:
        A dict: the setting, seed, parameters, training and held-out accuracy in %, and
        directions: how many singular values of d logits / dX exceed a hundredth of the
        largest, for 512 held-out images (empty where the images of a batch are mixed).
    """
    training, held_out = prepare(setting, seed, validation)
    model, device = training[:2]
    with quiet():
        try:
            for epoch in range(1, stop + 1):
                _, train_accuracy = utils.train(*training, epoch)
        except FloatingPointError:  # the network that is left is measured all the same
            train_accuracy = float("nan")
        _, accuracy = utils.test(model, device, held_out)
    directions = ""
    if setting.attention == "per image":
        spectrum = utils.head_spectrum(model, utils.normalize(held_out.images[:512]))
        directions = sum(value > 0.01 * spectrum[0] for value in spectrum)
    return asdict(setting) | dict(
        seed=seed,
        parameters=sum(p.numel() for p in model.parameters()),
        train_accuracy=round(train_accuracy, 2),
        accuracy=round(accuracy, 2),
        directions=directions,
    )


def one_thread():
    """What each run of ``run_all`` has; another number of threads rounds, and so ends, otherwise."""
    torch.set_num_threads(1)


def estimate(jobs, options):
    """Seconds that the jobs will take on one core, from two timed steps of each setting."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    images, labels = torch.randn(BATCH_SIZE, 3, 32, 32), torch.randint(10, (BATCH_SIZE,))
    seconds = {}
    for setting in {setting for setting, _ in jobs}:
        model = build(setting).to(memory_format=torch.channels_last)
        for _ in range(2):  # the first is the warm-up
            started = time.perf_counter()
            nn.functional.cross_entropy(model(images), labels).backward()
            seconds[setting] = time.perf_counter() - started
    torch.set_num_threads(threads)
    return sum(98 * options.get("stop", EPOCHS) * seconds[setting] for setting, _ in jobs)


def run_all(path, jobs, **options):
    """Run the jobs that the CSV at ``path`` doesn't hold yet, one a core, and append a line for each.

    Args:
        jobs: (Setting, seed) pairs, in the order in which they are started.
        options: passed to ``run``.
    """
    done = {(row["name"], int(row["seed"])) for row in read(path)}
    jobs = [(setting, seed) for setting, seed in jobs if (setting.name, seed) not in done]
    workers = 1 if torch.cuda.is_available() else len(os.sched_getaffinity(0))
    print(f"{path.name}: {len(done)} runs done, {len(jobs)} to do, {workers} at a time", flush=True)
    if jobs:
        print(
            f"about {estimate(jobs, options) / workers / 60:.0f} minutes, by the time of a few steps of each",
            flush=True,
        )
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=one_thread) as pool:
        futures = [pool.submit(run, setting, seed, **options) for setting, seed in jobs]
        for number, future in enumerate(as_completed(futures), start=1):
            row = future.result()
            with open(path, "a", newline="") as file:
                writer = csv.DictWriter(file, row)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
            print(f"[{number}/{len(jobs)}] {row['name']}, seed {row['seed']}: {row['accuracy']:.2f} %", flush=True)


def read(path):
    """The rows of a CSV that ``run_all`` wrote; none if it isn't there yet."""
    if not path.exists():
        return []
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
