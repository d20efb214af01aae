"""What the experiments share: the networks that they compare, one training, and a table that grows.

A ``Setting`` names everything in which two trainings may differ. ``run_all`` trains many, each on
one core, and adds a row to a CSV as each ends, so that a stopped experiment resumes.
"""

import contextlib
import copy
import csv
import functools
import io
import sys
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from itertools import islice
from multiprocessing import get_context

import torch
from torch import nn
from tqdm import tqdm

import utils
from model9 import Ultimus, UltimusNet

EPOCHS = 24


class OneImage(UltimusNet):
    """X is that of the image alone."""

    def features(self, images):
        return self.pool(self.stem(images)).flatten(1)


def random_flip(images):
    """Mirror half of the images, drawn at random, left to right. (B, C, H, W) to the same."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def unchanged(part):
    """As in our network."""


def blurs(stem):
    """Filters 1-2-1 of stride 2 in place of the average pools (Zhang 2019,
    https://arxiv.org/abs/1904.11486)."""
    for part in stem[:2]:
        part.average = nn.Sequential(
            nn.AvgPool2d(2, 1, 1), nn.AvgPool2d(2)
        )  # (1, 1) / 2 twice is (1, 2, 1) / 4


def no_blocks(model):
    """X goes to the last layer, which starts as PyTorch's: there are no eight directions to
    read."""
    model.blocks = nn.Sequential()
    model.fc.reset_parameters()


def linear(model):
    """A linear map 48 > 8 > 48 in the blocks' place. It starts as the projection that new blocks
    nearly are."""
    basis = model.blocks[0].key.weight.detach()
    model.blocks = nn.Sequential(nn.Linear(48, 8), nn.Linear(8, 48))
    for layer, weight in zip(model.blocks, (basis, basis.T)):
        layer.weight.data.copy_(weight)
        nn.init.zeros_(layer.bias)


STEMS = {"ours": unchanged, "blurs": blurs}
HEADS = {  # name: the kind of the blocks, and what then takes their place
    "ultimus": (Ultimus, unchanged),
    "residual": (utils.Residual, unchanged),
    "none": (Ultimus, no_blocks),
    "linear": (Ultimus, linear),
}
INITS = "projection", "default", "rescaled"  # ours, PyTorch's, PyTorch's with ``rescale``
AUGMENTATIONS = {
    "none": None,
    "crop by 2 and flip": lambda images: random_flip(utils.random_crop(images, 2)),
}
AUGMENTATIONS |= {
    f"crop by {n}": functools.partial(utils.random_crop, padding=n) for n in (2, 3, 4)
}


@dataclass(frozen=True)
class Setting:
    """One training. The defaults are those of the notebook. ValueError: an unknown stem, head, init
    or augmentation."""

    name: str
    stem: str = "ours"
    head: str = "ultimus"
    init: str = "projection"
    batch_size: int = 128
    max_lr: float = 0.01
    block_rate: float = 0.1  # the learning rate of the blocks, as a share of the others'
    augment: str = "crop by 4"
    mirror: bool = True  # X over the image and its mirror image

    def __post_init__(self):
        for field, known in dict(stem=STEMS, head=HEADS, init=INITS, augment=AUGMENTATIONS).items():
            if getattr(self, field) not in known:
                raise ValueError(
                    f"{self.name}: {field} {getattr(self, field)!r} is none of {', '.join(known)}"
                )


def build(setting, images=None):
    """The network of a setting; ``images``, normalised (B, 3, 32, 32), are what ``rescale``
    needs."""
    model = UltimusNet() if setting.mirror else OneImage()
    STEMS[setting.stem](model.stem)
    kind, replace = HEADS[setting.head]
    model.blocks = nn.Sequential(*[kind() for _ in range(4)])
    model.init_as_projection()
    replace(model)
    model = model if setting.init == "projection" else utils.with_default_init(model)
    if setting.init == "rescaled":
        rescale(model, images)
    return model


@torch.no_grad()
def rescale(model, images):
    """Scale each block's Out so that the variance between images stays (as LSUV,
    https://arxiv.org/abs/1511.06422)."""
    x = copy.deepcopy(model).train().features(images)
    for block in model.blocks:
        block.out.weight *= (x.var(0).sum() / block(x).var(0).sum()).sqrt()
        x = block(x)


def quiet():
    """Nothing printed inside reaches the screen."""
    return contextlib.redirect_stdout(io.StringIO())


def splits(data, validation):
    """Training and held-out (images, labels): the test set, or the last tenth of a fixed shuffle of
    the others."""
    if not validation:
        return (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    order = torch.randperm(len(data.train_images), generator=torch.Generator().manual_seed(0))
    parts = order.tensor_split([len(order) * 9 // 10])
    return [(data.train_images[part], data.train_labels[part]) for part in parts]


def prepare(setting, seed, validation=False, device=None):
    """Everything for a training of one setting under one seed; ``validation`` as in ``splits``.

    Returns (model, device, training batches, optimizer, scheduler), in the order of
    ``utils.train``, and the held-out batches. Raises RuntimeError: there is only the stand-in.
    """
    with quiet() as printed:
        data = utils.load_cifar10()
    if utils.on_stand_in:
        raise RuntimeError(f"{printed.getvalue()}the experiments want the real CIFAR-10")
    training, held_out = splits(data, validation)
    torch.manual_seed(seed)
    device = device or utils.pick_device()
    model = build(setting, utils.normalize(training[0][:512])).to(device)
    batches = utils.Batches(
        *training, device, setting.batch_size, True, AUGMENTATIONS[setting.augment]
    )
    optimizer, rates = utils.adam(model), [setting.max_lr, setting.block_rate * setting.max_lr]
    scheduler = utils.one_cycle(optimizer, EPOCHS, len(batches), rates)
    return (model, device, batches, optimizer, scheduler), utils.Batches(*held_out, device)


def run(setting, seed, validation=False):
    """Train one setting under one seed.

    Returns a dict: the setting; seed; training and held-out accuracy in % after the last epoch, the
    latter also "mirrored" (of the mean softmax of image and mirror image); effective_rank as in
    experiments/README.md; curve, the held-out accuracy after each epoch.
    """
    (model, device, batches, *rest), held_out = prepare(setting, seed, validation)
    history = []
    with quiet():
        utils.fit(model, device, batches, held_out, *rest, EPOCHS, history)

    def both_views(images):
        return model(images).softmax(1) + model(images.flip(3)).softmax(1)

    return asdict(setting) | dict(
        seed=seed,
        train_accuracy=round(history[-1]["train_accuracy"], 2),
        accuracy=round(history[-1]["test_accuracy"], 2),
        mirrored=round(utils.accuracy(*utils.predict(model, device, held_out, both_views)), 2),
        effective_rank=utils.directions(model.eval(), utils.normalize(held_out.images[:512])),
        curve=" ".join(f"{row['test_accuracy']:.2f}" for row in history),
    )


def job(row):
    """The (Setting, seed) of a CSV's row. A field that the row does not have takes its default."""
    values = {}
    for name, field in Setting.__dataclass_fields__.items():
        if row.get(name):
            values[name] = row[name] == "True" if field.type is bool else field.type(row[name])
    return Setting(**values), int(row["seed"])


def run_all(path, jobs, **options):
    """Run the (Setting, seed) pairs that the CSV at ``path`` does not have yet, one per core; add a
    row for each.

    Ctrl-C, or a row that cannot be written, ends it. An error of one run is raised after the
    others.
    """
    done = {job(row) for row in read(path)}
    jobs = [pair for pair in jobs if pair not in done]
    workers = 1 if utils.pick_device().type == "cuda" else torch.get_num_threads()
    print(f"{path.name}: {len(done)} runs, {len(jobs)} to do, {workers} at a time", flush=True)
    queue, running, failed = iter(jobs), set(), []
    with ProcessPoolExecutor(
        workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)
    ) as pool:
        bar = tqdm(total=len(jobs), file=sys.stdout)  # tells the time that is left
        while True:  # no run waits in the pool, which would start it even after Ctrl-C
            running |= {
                pool.submit(run, *pair, **options) for pair in islice(queue, workers - len(running))
            }
            if not running:
                break
            ended, running = wait(running, return_when=FIRST_COMPLETED)
            bar.update(len(ended))
            failed += [future for future in ended if future.exception()]
            for row in [future.result() for future in ended if not future.exception()]:
                tqdm.write(
                    f"{row['name']}, seed {row['seed']}: {row['accuracy']:.2f} %", file=sys.stdout
                )
                append(path, [row])
    for future in failed:
        future.result()  # raises what stopped a run


def read(path):
    """The rows of a CSV, all values as text; none if it is not there yet."""
    return (
        list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []
    )


def values(rows, name, column="accuracy"):
    """A column of the rows of this name, in the order of their seeds."""
    rows = sorted((row for row in rows if row["name"] == name), key=lambda row: int(row["seed"]))
    return [float(row[column]) for row in rows if row[column]]


def curves(rows, name):
    """The accuracy after each epoch, a list for each row of this name."""
    return [
        [float(accuracy) for accuracy in row["curve"].split()]
        for row in rows
        if row["name"] == name
    ]


def append(path, rows):
    """Add rows, dicts, to a CSV. A column that it lacks is added, empty in its older rows."""
    rows = read(path) + rows
    part = path.with_suffix(".part")  # takes the CSV's place when it is whole
    with open(part, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(
            file, list(dict.fromkeys(name for row in rows for name in row)), lineterminator="\n"
        )
        writer.writeheader()
        writer.writerows(rows)
    part.replace(path)
