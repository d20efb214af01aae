"""What the experiments share: the networks that they compare, one training, and a table that grows.

A ``Setting`` names everything in which two trainings may differ. ``run_all`` trains many, one core
each, and appends a line to a CSV as each ends, so that a stopped experiment resumes.
"""

import contextlib
import csv
import functools
import io
import sys
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context

import torch
import torch.nn.functional as F
from torch import nn
from tqdm import tqdm

import utils
from model9 import Ultimus, UltimusNet

EPOCHS = 24
CHANCE = 10  # per cent, of ten classes


class OverTheBatch(Ultimus):
    """Attention across the batch, as the published solution has it: one 8 x 8 map for all images.

    AM = softmax over j of (Q^T K / sqrt(8)), the division before the softmax:
    https://github.com/shreyash-99/EVA8/blob/835343031be2482f976b8e2de887c65dd5a16be3/Session_9_Assignment/model9.py
    """

    def attend(self, x):
        k, q, v = self.key(x), self.query(x), self.value(x)  # (B, 8) each
        attention = (q.T @ k / k.shape[1] ** 0.5).softmax(dim=1)  # (8 x B) x (B x 8) -> (8, 8)
        return attention, v @ attention  # (B x 8) x (8 x 8) -> (B, 8)


class OverQueries(Ultimus):
    """The softmax over i, over which Z sums: the weights of the values add up to 1/sqrt(8)."""

    def attend(self, x):
        k, q, v = self.key(x), self.query(x), self.value(x)  # (B, 8) each
        attention = torch.einsum("...i,...j->...ij", q, k).softmax(dim=-2) / 8**0.5  # (B, 8, 8)
        return attention, torch.einsum("...i,...ij->...j", v, attention)  # (B, 8)


class OneImage(UltimusNet):
    """X is that of the image alone."""

    def features(self, images):
        return self.pool(self.stem(images)).flatten(1)


def random_flip(images):
    """Mirror half of the images, drawn at random, left to right. (B, C, H, W) to the same."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
    return torch.where(mirrored, images.flip(3), images)


def square(corner):
    """A mask of one 8 x 8 square an image, bool (B, 1, 32, 32), from its first row and column, (2, B, 1)."""
    place = torch.arange(32, device=corner.device)
    down, right = (place >= corner) & (place < corner + 8)  # (B, 32) each
    return (down[:, :, None] & right[:, None, :])[:, None]


def cutout(images):
    """Cutout (DeVries & Taylor 2017, https://arxiv.org/abs/1708.04552): a grey 8 x 8 square around a random pixel."""
    corner = torch.randint(32, (2, len(images), 1), device=images.device) - 4
    grey = torch.tensor(utils.MEAN, device=images.device).mul(255).round().to(torch.uint8).view(3, 1, 1)
    return torch.where(square(corner), grey, images)


def published_augmentation(images):
    """The published run's augmentation, uint8 (B, 3, 32, 32) to the same, each image by its own draw.

    In the order of that run's figure of samples (its transforms stand in a Python set): a black hole of 8 x 8 with
    probability 0.9; a border of two pixels, grey because it was filled after the normalisation; a crop; with
    probability 0.5 a rotation by up to 45 degrees, a scale of 0.9 to 1.1 and a shift of up to two pixels, reflected
    beyond the border; a flip. Read in EVA8-all_models-new/utils.py and Session-9_Assignment.ipynb of
    https://github.com/shreyash-99/EVA8/tree/835343031be2482f976b8e2de887c65dd5a16be3
    """
    count, device = len(images), images.device
    mean, std = (torch.tensor(values, device=device).view(3, 1, 1) for values in (utils.MEAN, utils.STD))
    grey = 255 * (mean + std * mean)  # filled with the mean after the normalisation

    hole = square(torch.randint(25, (2, count, 1), device=device))
    hole = hole & (torch.rand(count, 1, 1, 1, device=device) < 0.9)
    images = images.float().masked_fill(hole, 0.0)

    padded = grey.expand(count, 3, 36, 36).clone()
    padded[:, :, 2:-2, 2:-2] = images
    windows = padded.unfold(2, 32, 1).unfold(3, 32, 1)  # (B, 3, 5, 5, 32, 32)
    down, right = torch.randint(5, (2, count), device=device)
    images = windows[torch.arange(count, device=device), :, down, right]  # (B, 3, 32, 32)

    angle, scale, x, y = 2 * torch.rand(4, count, device=device) - 1  # -1 to 1
    angle, scale = angle * torch.pi / 4, 1 + 0.1 * scale
    cos, sin = angle.cos() / scale, angle.sin() / scale
    pixels = 2 * 2 / 31  # two of them, where the image's side runs from -1 to 1
    maps = torch.stack([cos, -sin, pixels * x, sin, cos, pixels * y], 1).view(count, 2, 3)
    grid = F.affine_grid(maps, images.shape, align_corners=True)
    turned = F.grid_sample(images, grid, padding_mode="reflection", align_corners=True)
    images = torch.where(torch.rand(count, 1, 1, 1, device=device) < 0.5, turned, images)
    return random_flip(images.round().clamp(0, 255).to(torch.uint8))


AUGMENTATIONS = {"none": None, "published": published_augmentation}
for padding in (2, 3, 4):
    crop = functools.partial(utils.random_crop, padding=padding)
    AUGMENTATIONS[f"crop by {padding}"] = crop
    AUGMENTATIONS[f"crop by {padding} and flip"] = lambda images, crop=crop: random_flip(crop(images))
    AUGMENTATIONS[f"crop by {padding}, square of 8"] = lambda images, crop=crop: cutout(crop(images))


@dataclass(frozen=True)
class Setting:
    """One training. The defaults are those of the notebook."""

    name: str
    stem: str = "ours"  # or "blurs", in place of its average pools; or "stride 1", without any pool
    head: str = "ultimus"  # "residual", "over i" or "over the batch"; with blocks=0 "linear", "MLP" or "narrow MLP"
    blocks: int = 4
    init: str = "projection"  # or "default": PyTorch's
    c: float = 0.25  # of the projection
    details: str = "ours"  # "published": its biases, and Adam's beta1 cycled against the rate
    batch_size: int = 128
    max_lr: float = 0.01
    block_rate: float = 0.1  # the learning rate of the blocks, as a share of the others'
    augment: str = "crop by 4"
    mirror: bool = True  # X over the image and its mirror image


def build(setting):
    """The network of a setting."""
    model = UltimusNet() if setting.mirror else OneImage()
    if setting.stem == "blurs":  # Zhang 2019, https://arxiv.org/abs/1904.11486
        for part in model.stem[:2]:
            part.average = nn.Sequential(nn.AvgPool2d(2, 1, 1), nn.AvgPool2d(2))  # (1, 1) / 2 twice is (1, 2, 1) / 4
    if setting.stem == "stride 1":
        for part in model.stem:
            part.pool = part.average = nn.Identity()
        model.stem[2].conv.dilation = model.stem[2].conv.padding = (1, 1)
    kind = {"over the batch": OverTheBatch, "over i": OverQueries}.get(setting.head, Ultimus)
    model.blocks = nn.Sequential(*[kind() for _ in range(setting.blocks or 4)])
    model.init_as_projection(setting.c)
    basis = model.blocks[0].key.weight.detach()
    for block in model.blocks:
        if setting.head == "over i":  # this softmax carries the mean of the keys, too
            nn.init.zeros_(block.value.weight)
        if setting.head == "residual":  # which the assignment does not have
            block.register_forward_hook(lambda block, x, out: x[0] + out)
    if setting.head == "linear":  # the projection as which ours is initialised
        model.blocks = nn.Sequential(nn.Linear(48, 8), nn.Linear(8, 48))
        for layer, weight in zip(model.blocks, (basis, basis.T)):
            layer.weight.data.copy_(weight)
            nn.init.zeros_(layer.bias)
    elif setting.blocks == 0:
        model.blocks = nn.Sequential()
        model.fc.reset_parameters()  # it has no eight directions to read
    if setting.head in ("MLP", "narrow MLP"):
        out = [nn.Linear(64, 48)] if setting.head == "MLP" else [nn.Linear(64, 8), nn.Linear(8, 48)]
        model.blocks = nn.Sequential(nn.Linear(48, 64), nn.BatchNorm1d(64), nn.ReLU(), *out)
        model.fc.reset_parameters()  # again, as in the runs of heads.csv
    if setting.init == "default":
        model = utils.with_default_init(model)
    if setting.details == "published":
        for part in model.stem:
            part.conv = nn.Conv2d(part.conv.in_channels, part.conv.out_channels, kernel_size=3, padding=1)
        for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
            layer.bias = None
    return model


def quiet():
    """Nothing printed inside reaches the screen."""
    return contextlib.redirect_stdout(io.StringIO())


def splits(data, validation):
    """Training and held-out (images, labels): the test set, or the last 5,000 of a fixed shuffle of the others."""
    if not validation:
        return (data.train_images, data.train_labels), (data.test_images, data.test_labels)
    order = torch.randperm(50_000, generator=torch.Generator().manual_seed(0))
    return [(data.train_images[part], data.train_labels[part]) for part in (order[:45_000], order[45_000:])]


def prepare(setting, seed, validation=False, device=None):
    """Everything for a training of one setting under one seed; ``validation`` as in ``splits``.

    Returns (model, device, training batches, optimizer, scheduler), in the order of ``utils.train``, and the held-out
    batches. Raises RuntimeError: there is only the stand-in.
    """
    with quiet() as told:
        data = utils.load_cifar10()
    if utils.on_stand_in:
        raise RuntimeError(f"{told.getvalue()}the experiments want the real CIFAR-10")
    training, held_out = splits(data, validation)
    torch.manual_seed(seed)
    device = device or utils.pick_device()
    model = build(setting).to(device, memory_format=utils.memory_format(device))
    batches = utils.Batches(*training, device, setting.batch_size, True, AUGMENTATIONS[setting.augment])
    optimizer, rates = utils.adam(model), [setting.max_lr, setting.block_rate * setting.max_lr]
    scheduler = utils.one_cycle(optimizer, EPOCHS, len(batches), rates, setting.details == "published")
    return (model, device, batches, optimizer, scheduler), utils.Batches(*held_out, device)


def run(setting, seed, validation=False):
    """Train one setting under one seed.

    Returns a dict: the setting; seed; training and held-out accuracy in % after the last epoch, the latter also
    "mirrored" (the softmax averaged over each image and its mirror image); effective_rank as in experiments/README.md,
    empty where a batch is mixed; curve, the held-out accuracy after each epoch. FloatingPointError: loss not finite.
    """
    (model, device, batches, *rest), held_out = prepare(setting, seed, validation)
    history = []
    with quiet():
        utils.fit(model, device, batches, held_out, *rest, EPOCHS, history)

    def both(images):
        return model(images).softmax(1) + model(images.flip(3)).softmax(1)

    rank = ""
    if setting.head != "over the batch":
        spectrum = utils.spectrum(model, utils.normalize(held_out.images[:512]))
        rank = sum(value > 0.01 * spectrum[0] for value in spectrum)
    return asdict(setting) | dict(
        seed=seed,
        train_accuracy=round(history[-1]["train_accuracy"], 2),
        accuracy=round(history[-1]["test_accuracy"], 2),
        mirrored=round(utils.accuracy(*utils.predict(model, device, held_out, both)), 2),
        effective_rank=rank,
        curve=" ".join(f"{row['test_accuracy']:.2f}" for row in history),
    )


def known(row):
    """What identifies a run: its whole setting and its seed, as text."""
    return tuple(str(row[field]) for field in (*Setting.__dataclass_fields__, "seed"))


def run_all(path, jobs, **options):
    """Run the (Setting, seed) pairs that the CSV at ``path`` does not have yet, one a core; append a line for each."""
    done = {known(row) for row in read(path)}
    jobs = [(setting, seed) for setting, seed in jobs if known(asdict(setting) | {"seed": seed}) not in done]
    collect(path, functools.partial(run, **options), jobs)


def collect(path, function, jobs):
    """Call ``function(*job)`` for each job, one a core; append the row or rows that it returns as it ends."""
    workers = 1 if utils.pick_device().type == "cuda" else torch.get_num_threads()
    print(f"{path.name}: {len(read(path))} rows, {len(jobs)} runs to do, {workers} at a time", flush=True)
    with ProcessPoolExecutor(workers, get_context("spawn"), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = [pool.submit(function, *job) for job in jobs]
        for future in tqdm(as_completed(futures), total=len(jobs), file=sys.stdout):  # tells the time that is left
            if not future.exception():
                rows = [future.result()] if isinstance(future.result(), dict) else future.result()
                append(path, rows)
                tqdm.write(f"{rows[0]['name']}, seed {rows[0]['seed']}: {rows[0]['accuracy']:.2f} %", file=sys.stdout)
    for future in futures:
        future.result()  # raises what stopped a run, after the others are kept


def read(path):
    """The rows of a CSV, all values as text; none if it is not there yet."""
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines())) if path.exists() else []


def values(rows, name, column="accuracy"):
    """A column of the rows of this name, in the order of their seeds."""
    rows = sorted((row for row in rows if row["name"] == name), key=lambda row: int(row["seed"]))
    return [float(row[column]) for row in rows if row[column]]


def curves(rows, name):
    """The accuracy after each epoch, a list for each row of this name."""
    return [[float(accuracy) for accuracy in row["curve"].split()] for row in rows if row["name"] == name]


def append(path, rows):
    """Append rows, dicts of the same keys, to a CSV; a new file gets a header."""
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0], lineterminator="\n")
        if file.tell() == 0:
            writer.writeheader()
        writer.writerows(rows)
