"""What the experiments share: the networks that they compare, one training, and a table that grows.

A ``Setting`` names everything in which two trainings may differ. ``run_all`` trains many, each on
one core, and adds a row to a CSV as each ends, so that a stopped experiment resumes.
"""

import contextlib
import csv
import functools
import io
import os
import sys
import threading
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context, parent_process

import torch
from filelock import FileLock  # which torch requires
from torch import nn
from tqdm import tqdm

import utils
from model9 import Ultimus, UltimusNet

EPOCHS = 24


class AcrossBatch(Ultimus):
    """One attention map from all images of a batch. All else is as in the assignment."""

    def attend(self, x):
        k, q, v = self.key(x), self.query(x), self.value(x)  # (B, 8) each
        attention = (q.T @ k).softmax(dim=-1) / 8**0.5  # (8 x B) x (B x 8) -> (8, 8)
        return attention, v @ attention  # (B x 8) x (8 x 8) -> (B, 8)


class AcrossBatchResidual(AcrossBatch, utils.Residual):
    """x + block(x), the map as in ``AcrossBatch``."""


class Published(Ultimus):
    """As in the published solution: across the batch, and divided by sqrt(8) before the softmax.

    Read in Session_9_Assignment/model9.py of https://github.com/shreyash-99/EVA8, commit
    835343031be2482f976b8e2de887c65dd5a16be3.
    """

    def attend(self, x):
        k, q, v = self.key(x), self.query(x), self.value(x)  # (B, 8) each
        attention = (q.T @ k / 8**0.5).softmax(dim=-1)  # (8 x B) x (B x 8) -> (8, 8)
        return attention, v @ attention  # (B x 8) x (8 x 8) -> (B, 8)


class OneView(UltimusNet):
    """X is that of the image alone, without its mirror image."""

    def features(self, images):
        return self.pool(self.stem(images)).flatten(1)


class Tiles(UltimusNet):
    """X is the mean over the 16 tiles of an image, so no place sees more than 8 x 8 pixels."""

    def features(self, images):
        grid = images.reshape(-1, 3, 4, 8, 4, 8)  # (B, 3, rows, height, columns, width)
        tiles = grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, 3, 8, 8)  # (16B, 3, 8, 8)
        tiles = tiles.contiguous(memory_format=torch.channels_last)  # as all images on a CPU
        return self.pool(self.stem(tiles)).view(-1, 16, 48).mean(1)


def random_flip(images):
    """Mirror half of the images, drawn at random, left to right. (B, C, H, W) to the same."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def unchanged(part):
    """As in our network."""


def blurs(stem):
    """Filters 1-2-1 for average pools (Zhang 2019, https://arxiv.org/abs/1904.11486)."""
    for part in stem[:2]:
        # (1, 1) / 2 twice is (1, 2, 1) / 4
        part.average = nn.Sequential(nn.AvgPool2d(2, 1, 1), nn.AvgPool2d(2))


def max_pools(stem):
    """Two max-pools of stride 2 after ReLU, no dilation: a place sees up to 18 x 18 pixels."""
    for part in stem:
        part.pool = nn.Identity()
    stem[0].average = stem[1].average = nn.MaxPool2d(2)
    stem[2].conv.padding = stem[2].conv.dilation = (1, 1)


def no_blocks(model):
    """X goes to the last layer, which starts as PyTorch's: no eight directions are to be read."""
    model.blocks = nn.Sequential()
    model.fc.reset_parameters()


def linear(model):
    """A linear map 48 > 8 > 48 in the blocks' place, at first the projection of new blocks."""
    basis = model.blocks[0].key.weight.detach()
    model.blocks = nn.Sequential(nn.Linear(48, 8), nn.Linear(8, 48))
    for layer, weight in zip(model.blocks, (basis, basis.T)):
        layer.weight.data.copy_(weight)
        nn.init.zeros_(layer.bias)


def through_2(model):
    """Our initialisation with two of its eight directions: K and Out have rank 2."""
    chosen = torch.linalg.qr(torch.randn(8, 2)).Q  # (8, 2), orthonormal columns
    for block in model.blocks:
        key, out, value = (layer.weight.data for layer in (block.key, block.out, block.value))
        key.copy_(chosen @ chosen.T @ key)  # (8, 48)
        out.copy_(out @ chosen @ chosen.T)  # (48, 8)
        value.copy_(0.25 * key.mean(0).expand_as(value))  # as in ``init_as_projection``
    return model


STEMS = {"ours": unchanged, "blurs": blurs, "max-pools": max_pools}
VIEWS = {"both": UltimusNet, "one": OneView, "tiles": Tiles}  # of an image, of which X is the mean
HEADS = {  # name: the kind of the blocks, and what then takes their place
    "ultimus": (Ultimus, unchanged),
    "residual": (utils.Residual, unchanged),
    "across the batch": (AcrossBatch, unchanged),
    "across the batch, residual": (AcrossBatchResidual, unchanged),
    "across the batch, published": (Published, unchanged),
    "none": (Ultimus, no_blocks),
    "linear": (Ultimus, linear),
}
INITS = {
    "projection": lambda model: model,  # ours
    "default": utils.with_default_init,
    "through 2": through_2,
}
CROPS = {n: functools.partial(utils.random_crop, padding=n) for n in (2, 3, 4)}
AUGMENTATIONS = {f"crop by {n}": crop for n, crop in CROPS.items()}
AUGMENTATIONS["crop by 2 and flip"] = lambda images: random_flip(CROPS[2](images))
AUGMENTATIONS["none"] = None


@dataclass(frozen=True)
class Setting:
    """One training. The defaults are those of the notebook."""

    name: str
    stem: str = "ours"
    head: str = "ultimus"
    init: str = "projection"
    batch_size: int = 128
    max_lr: float = 0.01
    block_rate: float = 0.1  # the learning rate of the blocks, as a share of the others'
    augment: str = "crop by 4"
    views: str = "both"  # X over the image and its mirror image


def build(setting):
    """The network of a setting."""
    kind, replace = HEADS[setting.head]
    model = VIEWS[setting.views](kind)
    STEMS[setting.stem](model.stem)
    replace(model)
    return INITS[setting.init](model)


def quiet():
    """Nothing printed inside reaches the screen."""
    return contextlib.redirect_stdout(io.StringIO())


def splits(data, validation):
    """Training and held-out (images, labels).

    Held out is the test set or, for ``validation``, the last tenth of a fixed shuffle of the rest.
    """
    if not validation:
        return (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split([len(order) * 9 // 10])
    return [(data.train_images[part], data.train_labels[part]) for part in parts]


def load():
    """CIFAR-10 as ``utils.Data``. RuntimeError: there is only the stand-in."""
    with quiet() as printed:
        data = utils.load_cifar10()
    if utils.on_stand_in():
        raise RuntimeError(f"{printed.getvalue()}the experiments want the real CIFAR-10")
    return data


def prepare(setting, seed, validation=False, device=None):
    """Everything for a training of one setting under one seed; ``validation`` as in ``splits``.

    Returns (model, device, training batches, optimizer, scheduler), in the order of
    ``utils.train``, and the held-out batches. RuntimeError as in ``load``.
    """
    training, held_out = splits(load(), validation)
    torch.manual_seed(seed)
    device = device or utils.pick_device()
    model = build(setting).to(device)
    augment = AUGMENTATIONS[setting.augment]
    batches = utils.Batches(*training, device, setting.batch_size, shuffle=True, transform=augment)
    optimizer, rates = utils.adam(model), [setting.max_lr, setting.block_rate * setting.max_lr]
    scheduler = utils.one_cycle(optimizer, EPOCHS, len(batches), rates)
    return (model, device, batches, optimizer, scheduler), utils.Batches(*held_out, device)


def run(setting, seed, validation=False):
    """Train one setting under one seed.

    Returns a dict: the setting; seed; training and held-out accuracy in % after the last epoch; the
    latter also "mirrored", of the mean softmax of image and mirror image, and asked again in other
    batches than those of 512 in their order; curve, the held-out accuracy after each epoch.
    """
    (model, device, batches, *rest), held_out = prepare(setting, seed, validation)
    history = []
    with quiet():
        utils.fit(model, device, batches, held_out, *rest, EPOCHS, history)

    def both_views(images):
        return model(images).softmax(1) + model(images.flip(3)).softmax(1)

    def asked(order=slice(None), **options):
        again = utils.Batches(held_out.images[order], held_out.labels[order], device, **options)
        return round(utils.accuracy(*utils.predict(model, device, again)), 2)

    return asdict(setting) | dict(
        seed=seed,
        train_accuracy=round(history[-1]["train_accuracy"], 2),
        accuracy=round(history[-1]["test_accuracy"], 2),
        mirrored=round(utils.accuracy(*utils.predict(model, device, held_out, both_views)), 2),
        in_batches_of_8=asked(batch_size=8),
        one_by_one=asked(batch_size=1),
        sorted_by_class=asked(held_out.labels.argsort(stable=True)),
        curve=" ".join(f"{row['test_accuracy']:.2f}" for row in history),
    )


def job(row):
    """The (Setting, seed) of a CSV's row. A field that the row does not have takes its default."""
    values = {}
    for name, field in Setting.__dataclass_fields__.items():
        if row.get(name):
            values[name] = field.type(row[name])
    return Setting(**values), int(row["seed"])


def start_worker():
    """A worker has one thread, and ends with its parent, however that ends."""
    torch.set_num_threads(1)
    watch = threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True)
    watch.start()


def run_all(path, jobs, **options):
    """Run the (Setting, seed) pairs that the CSV at ``path`` lacks, one per core; add their rows.

    Ctrl-C, or a row that cannot be written, ends it. An error of a run is raised after the others.
    """
    done = {job(row) for row in read(path)}
    jobs = [pair for pair in jobs if pair not in done]
    workers = 1 if utils.pick_device().type == "cuda" else torch.get_num_threads()
    print(f"{path.name}: {len(done)} runs, {len(jobs)} to do, {workers} at a time", flush=True)
    queue, running, failed = iter(jobs), set(), []
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=start_worker)
    with pool, tqdm(total=len(jobs), file=sys.stdout) as bar:
        while True:  # no run waits in the pool, which would start it even after Ctrl-C
            for pair in islice(queue, workers - len(running)):
                running.add(pool.submit(run, *pair, **options))
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            bar.update(len(ended))
            failed += [future for future in ended if future.exception()]
            for row in [future.result() for future in ended if not future.exception()]:
                text = f"{row['name']}, seed {row['seed']}: {row['accuracy']:.2f} %"
                tqdm.write(text, file=sys.stdout)
                append(path, [row])
    for future in failed:
        future.result()  # raises what stopped a run


def read(path):
    """The rows of a CSV, all values as text; none if it is not there yet."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    return list(csv.DictReader(text.splitlines()))


def values(rows, name, column="accuracy"):
    """A column of the rows of this name, in the order of their seeds."""
    rows = sorted((row for row in rows if row["name"] == name), key=lambda row: int(row["seed"]))
    return [float(row[column]) for row in rows if row[column]]


def append(path, rows):
    """Add rows, dicts, to a CSV. A column that it lacks is added, empty in its older rows."""
    with FileLock(path.with_suffix(".lock")):  # another process may write to the same table
        write(path, read(path) + rows)


def write(path, rows):
    """Write a CSV of rows, dicts. It takes the place of an older one when it is whole."""
    part = path.with_suffix(".part")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
