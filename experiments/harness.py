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
from multiprocessing import active_children, get_context, parent_process

import torch
from filelock import FileLock  # which torch requires
from torch import nn
from tqdm import tqdm

import utils
from model9 import Ultimus, UltimusNet

EPOCHS = 24


class AcrossBatch(Ultimus):
    """One attention map from all images of a batch. All else is as in the assignment."""

    before, after = 1, 8**0.5  # divisors, before and after the softmax

    def attend(self, x):
        k, q, v = self.key(x), self.query(x), self.value(x)  # (B, 8) each
        scores = q.T @ k / self.before  # (8 x B) x (B x 8) -> (8, 8)
        attention = scores.softmax(dim=-1) / self.after
        return attention, self.out(v @ attention)  # (B x 8) x (8 x 8) -> (B, 8) -> (B, 48)


class AcrossBatchResidual(utils.Residual, AcrossBatch):
    """x + block(x), the map as in ``AcrossBatch``."""


class Published(AcrossBatch):
    """As in the published solution: divided by sqrt(8) before the softmax.

    Read in Session_9_Assignment/model9.py of https://github.com/shreyash-99/EVA8, commit
    835343031be2482f976b8e2de887c65dd5a16be3.
    """

    before, after = 8**0.5, 1


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


# Each takes a network and returns the network that it changes.


def unchanged(model):
    """As in our network."""
    return model


def max_pools(model):
    """Two max-pools of stride 2 after ReLU, no dilation: a place sees 18 x 18 pixels."""
    for part in model.stem:
        part.pool = nn.Identity()
    model.stem[0].average = model.stem[1].average = nn.MaxPool2d(2)
    model.stem[2].conv.padding = model.stem[2].conv.dilation = (1, 1)
    return model


def no_blocks(model):
    """X goes to the last layer, which starts as PyTorch's: no eight directions are to be read."""
    model.blocks = nn.Sequential()
    model.fc.reset_parameters()
    return model


def linear(model):
    """A linear map 48 > 8 > 48 in the blocks' place, at first the projection of new blocks."""
    basis = model.blocks[0].key.weight.detach()
    model.blocks = nn.Sequential(nn.Linear(48, 8), nn.Linear(8, 48))
    for layer, weight in zip(model.blocks, (basis, basis.T)):
        layer.weight.data.copy_(weight)
        nn.init.zeros_(layer.bias)
    return model


def through_2(model):
    """Our initialisation with two of its eight directions: K and Out have rank 2; V follows."""
    chosen = torch.linalg.qr(torch.randn(8, 2)).Q  # (8, 2), orthonormal columns
    for block in model.blocks:
        key, out, value = (layer.weight.data for layer in (block.key, block.out, block.value))
        key.copy_(chosen @ chosen.T @ key)  # (8, 48)
        out.copy_(out @ chosen @ chosen.T)  # (48, 8)
        value.copy_(0.25 * key.mean(0).expand_as(value))  # as in ``init_as_projection``
    return model


STEMS = {"ours": unchanged, "max-pools": max_pools}
VIEWS = {"both": UltimusNet, "one": OneView, "tiles": Tiles}  # of an image; X is their mean
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
    "projection": unchanged,  # ours
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
    weight_decay: float = 0.0  # of Adam
    views: str = "both"


def build(setting):
    """The network of a setting."""
    blocks, replace = HEADS[setting.head]
    model = VIEWS[setting.views](blocks)
    for change in (STEMS[setting.stem], replace, INITS[setting.init]):
        model = change(model)
    return model


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
        raise RuntimeError(f"{printed.getvalue()}the experiments need the real CIFAR-10")
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
    for group in optimizer.param_groups:
        group["weight_decay"] = setting.weight_decay
    scheduler = utils.one_cycle(optimizer, EPOCHS, len(batches), rates)
    return (model, device, batches, optimizer, scheduler), utils.Batches(*held_out, device)


def run(setting, seed, validation=False):
    """Train one setting under one seed.

    Returns a dict: the setting; seed; training and held-out accuracy in % after the last epoch; the
    latter also "mirrored", of the mean softmax of image and mirror image, and asked again in other
    batches than those of 512 in their order; curve, the held-out accuracy after each epoch.
    """
    (model, device, batches, *rest), held_out = prepare(setting, seed, validation)
    with quiet():
        history = list(utils.fit(model, device, batches, held_out, *rest, EPOCHS))
    images, labels = held_out.images, held_out.labels
    order = labels.argsort(stable=True)

    def scores(images, batch_size=512):
        again = utils.Batches(images, labels, device, batch_size)
        return utils.predict(model, device, again)[0].softmax(1)

    def percent(scores, labels):
        return round(utils.accuracy(scores, labels), 2)

    return asdict(setting) | dict(
        seed=seed,
        train_accuracy=round(history[-1]["train_accuracy"], 2),
        accuracy=round(history[-1]["test_accuracy"], 2),
        mirrored=percent(scores(images) + scores(images.flip(3)), labels),
        one_by_one=percent(scores(images, 1), labels),
        sorted_by_class=percent(scores(images[order]), labels[order]),
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
    torch.set_flush_denormal(True)  # weight decay leaves numbers so small that they are slow
    watch = threading.Thread(target=lambda: (parent_process().join(), os._exit(1)), daemon=True)
    watch.start()


def run_all(path, jobs, **options):
    """Run the (Setting, seed) pairs that the CSV at ``path`` lacks, one per core; add their rows.

    Ctrl-C, or a row that cannot be written, ends it at once. An error of a run is raised after the
    others. RuntimeError as in ``load``.
    """
    load()
    done = {job(row) for row in read(path)}
    jobs = [pair for pair in jobs if pair not in done]
    workers = 1 if utils.pick_device().type == "cuda" else torch.get_num_threads()
    print(f"{path.name}: {len(done)} runs, {len(jobs)} to do, {workers} at a time", flush=True)
    queue, running, failed = iter(jobs), set(), []
    pool = ProcessPoolExecutor(workers, get_context("spawn"), initializer=start_worker)
    with pool, tqdm(total=len(jobs), file=sys.stdout) as bar:
        try:
            while True:  # no run waits in the pool, which would start it even after Ctrl-C
                for pair in islice(queue, workers - len(running)):
                    running.add(pool.submit(run, *pair, **options))
                if not running:
                    break
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                bar.update(len(ended))
                failed += [future for future in ended if future.exception()]
                for row in [future.result() for future in ended if not future.exception()]:
                    tqdm.write(
                        f"{row['name']}, seed {row['seed']}: {row['accuracy']:.2f} %",
                        file=sys.stdout,
                    )
                    append(path, [row])
        except BaseException:
            for worker in active_children():  # for which the pool would wait
                worker.terminate()
            raise
    for future in failed:
        future.result()  # raises what stopped a run


def read(path):
    """The rows of a CSV, all values as text; none if it is not there yet."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


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
