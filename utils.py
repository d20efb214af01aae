"""Data and transforms, the one-cycle schedule, the train and test loops, what is measured, the plots.

Everything around the network of ``model9.py``: first where files go (``output``) and what marks
them, then four sections:

    1. Data          load_cifar10, random_flip, random_crop, augment, normalize, Batches
    2. Training      seed_everything, pick_device, adam, one_cycle, find_lr, train, test, fit, predict,
                     predict_mirrored, save, load
    3. Measurements  what the blocks do to their input, before and after the training
    4. Plots         one function for each figure of the notebook, which it saves
"""

import contextlib
import copy
import ctypes
import functools
import io
import math
import os
import random
import re
import sys
import tempfile
import textwrap
import time
import urllib.request
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import check_integrity, extract_archive
from tqdm import tqdm

MARKS = {}  # what logs and figures must say of the "data" or the "training", if there is anything


def mark():
    """``MARKS`` in brackets, or nothing."""
    return f"[{', '.join(MARKS.values())}]" if MARKS else ""


def expand(path):
    """The path that a person means who writes ``~/data`` or ``$HOME/data``."""
    return Path(os.path.expandvars(os.path.expanduser(path)))


def output():
    """The folder of figures and weights: the one that ULTIMUS_OUTPUT names, else the working folder.

    What has a ``mark`` goes to its subfolder "marked", so that nothing takes the place of the
    figures and weights of a whole training on CIFAR-10; under ``pytest --nbval`` a temporary
    folder takes the working folder's place.
    """
    testing = "PYTEST_CURRENT_TEST" in os.environ  # which the notebook's kernel inherits
    folder = expand(os.environ.get("ULTIMUS_OUTPUT") or (_temporary_folder() if testing else "."))
    return folder / "marked" if MARKS else folder


@functools.cache
def _temporary_folder():
    return Path(tempfile.mkdtemp(prefix="ultimus-"))


@contextlib.contextmanager
def replacing(path):
    """A temporary path beside ``path``, which takes its place if the block ends well; else an older file stays."""
    path = Path(path).resolve()  # what a link points to, so that the link stays
    new = path.with_name(f"unfinished-{os.getpid()}-{path.name}")
    try:
        new.touch()  # what can't be written fails before the work, a download's for example
        yield new
        new.replace(path)
    finally:
        with contextlib.suppress(OSError):
            new.unlink(missing_ok=True)


@contextlib.contextmanager
def _saving(path):
    """``replacing``, its folder made, with an error that names the cure."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as new:
            yield new
    except OSError as error:
        cure = "set ULTIMUS_OUTPUT to a folder that you may write to, with some MB free"
        raise OSError(error.errno, f"{path} can't be written ({error.strerror}): {cure}") from error


# ------------------------------------------------------------------------------
# 1. Data
# ------------------------------------------------------------------------------

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, pixels scaled to [0, 1]
STD = (0.2470, 0.2435, 0.2616)
STAND_IN = "synthetic stand-in"
TIMEOUT = 30  # seconds that a silent server is waited for
PATIENCE = 600  # seconds that a test waits for a download
ARCHIVE_SIZE = 170_498_071  # bytes; a chunked answer doesn't tell


@dataclass
class Images:
    """CIFAR-10's images in memory, uint8 (N, 3, 32, 32), and their labels, int64 (N,).

    ``note`` is empty for the real ones and says "synthetic stand-in" for others.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    note: str = ""


def load_cifar10(root=None):
    """Load CIFAR-10, downloading it only if no whole copy lies under ``root``.

    Where it can't be downloaded, a synthetic stand-in of the same shapes takes its
    place, so that everything still runs; a banner says so, and why, and all logs and
    figures are marked.

    Args:
        root: folder that holds, or will hold, ``cifar-10-batches-py``; that folder itself
            or the archive beside it will do. Default: the environment variable
            ``CIFAR10_ROOT``, else ``data``.

    Returns:
        ``Images``, 50,000 for training and 10,000 for the test.

    Raises:
        OSError: ``root`` can't be read or written to, or its disk is full.
    """
    root = expand(root or os.environ.get("CIFAR10_ROOT") or "data")
    if root.resolve().name in (CIFAR10.base_folder, CIFAR10.filename):
        root = root.resolve().parent
    try:
        data = _read(root)
        if data is None:
            reason = "the files in its archive are not those of CIFAR-10"
            try:
                _download(root)
            except DownloadError as error:
                reason = str(error)
            data = _read(root)  # even after a failure: another process may just have brought it
    except OSError as error:
        raise OSError(
            error.errno,
            f"CIFAR-10 can't be kept in {root} ({error.strerror}). Set CIFAR10_ROOT to a folder "
            "that you may write to, with 400 MB free",
        ) from error
    MARKS.pop("data", None)
    if data is None:
        data = stand_in()
        MARKS["data"] = STAND_IN
        _banner(root, reason)
    n, m = len(data.train_images), len(data.test_images)
    print(f"{data.note or 'CIFAR-10'} ({'made here' if data.note else root}): {n:,} training and {m:,} test images")
    return data


def _read(root):
    """The images under ``root``; None if a file is missing or its checksum is wrong."""
    splits = []
    for train in (True, False):
        try:
            split = CIFAR10(root, train=train)  # verifies every checksum
        except RuntimeError:
            return None
        splits += [torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)]
    return Images(*splits)


class DownloadError(Exception):
    """CIFAR-10 can't be had from its address; the network, the server or what it sent is to blame."""


def _download(root):
    """Fetch and unpack the archive; one that is there and whole is only unpacked.

    Raises:
        DownloadError: it doesn't come.
        OSError: it can't be stored.
    """
    archive = root / CIFAR10.filename
    if not check_integrity(archive, CIFAR10.tgz_md5):
        _fetch(archive)
    (root / CIFAR10.base_folder).mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=root) as unpacked:
        extract_archive(str(archive), unpacked)
        for file in Path(unpacked, CIFAR10.base_folder).iterdir():
            file.replace(root / CIFAR10.base_folder / file.name)  # whole at any moment, for whoever reads it now


def _over_network(call, *args, **options):
    """The result of a call in which whatever a network, a proxy or a server comes up with is a DownloadError."""
    try:
        return call(*args, **options)
    except Exception as error:
        raise DownloadError(f"{type(error).__name__}: {error}") from error


def _fetch(archive):
    print(f"Downloading CIFAR-10 (170 MB) to {archive.parent} ...")
    archive.parent.mkdir(parents=True, exist_ok=True)
    started, got = time.monotonic(), 0
    with (
        replacing(archive) as new,
        _over_network(urllib.request.urlopen, CIFAR10.url, timeout=TIMEOUT) as answer,
        open(new, "wb") as file,
        tqdm(total=answer.length or ARCHIVE_SIZE, unit="B", unit_scale=True, file=sys.stdout) as bar,
    ):
        while part := _over_network(answer.read1, 2**18):
            file.write(part)
            bar.update(len(part))
            got, seconds = got + len(part), time.monotonic() - started
            too_slow = seconds > TIMEOUT and seconds / got * bar.total > PATIENCE
            if too_slow and "PYTEST_CURRENT_TEST" in os.environ:  # pytest --nbval's, which the kernel inherits
                raise DownloadError(f"at {got / seconds / 1000:.0f} kB/s it would take a test too long")
        file.flush()
        if not check_integrity(new, CIFAR10.tgz_md5):
            raise DownloadError(f"what came, {got:,} bytes, is corrupted: its checksum is wrong")


def _banner(root, reason):
    expired = "CERTIFICATE_VERIFY_FAILED" in reason
    cure = "Bring this machine's certificates up to date" if expired else "Make that address reachable from here"
    text = (
        "NOT CIFAR-10: SYNTHETIC STAND-IN IMAGES\n"
        f"CIFAR-10 is not in {root}, and the download of {CIFAR10.url} failed: {reason}\n"
        f"No accuracy below says anything about CIFAR-10. {cure}, or unpack "
        f"what it has into {root}, and run again."
    )
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 84)]
    print("\n".join(["*" * 88, *(f"* {line:<84} *" for line in lines), "*" * 88]))


def stand_in():
    """Make images with CIFAR-10's shapes and counts, ten classes that can be learned.

    Each class is a smooth random pattern; an image shows it shifted, at a random
    contrast, under noise and mixed with another class's pattern.

    Returns:
        ``Images`` whose ``note`` is "synthetic stand-in".
    """
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(10, 3, 6, 6, generator=generator)
    patterns = F.interpolate(coarse, size=32, mode="bicubic").mul(40).short()  # (10, 3, 32, 32)
    splits = []
    for count in (50_000, 10_000):
        labels = torch.arange(count) % 10
        images = torch.empty(count, 3, 32, 32, dtype=torch.uint8)
        for start in range(0, count, 5_000):
            own = labels[start : start + 5_000]
            other = torch.randint(10, own.shape, generator=generator)
            shift = torch.randint(-3, 4, (2,), generator=generator).tolist()
            noise = torch.randint(-60, 61, (len(own), 3, 32, 32), generator=generator, dtype=torch.int16)
            mixed = patterns[own] + patterns[other] // 2
            images[start : start + 5_000] = (128 + mixed.roll(shift, (2, 3)) + noise).clamp(0, 255).to(torch.uint8)
        order = torch.randperm(count, generator=generator)
        splits += [images[order], labels[order]]
    return Images(*splits, note=STAND_IN)


def random_flip(images, p=0.5):
    """Mirror each image left to right with probability ``p``. (B, C, H, W) to the same."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < p
    return torch.where(mirrored, images.flip(3), images)


def random_crop(images, padding=2):
    """Shift each image by up to ``padding`` pixels each way; its reflection fills the border.

    (B, C, H, W) to the same: the crop of H x W out of the image padded on all sides.
    """
    size, device = len(images), images.device
    padded = F.pad(images, [padding] * 4, mode="reflect")
    windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # (B, C, 2p + 1, 2p + 1, H, W)
    down, right = torch.randint(2 * padding + 1, (2, size), device=device)
    return windows[torch.arange(size, device=device), :, down, right]  # (B, C, H, W)


def normalize(images):
    """uint8 (B, 3, H, W) to float32 with CIFAR-10's mean 0 and standard deviation 1 per channel.

    Raises:
        TypeError: the images aren't uint8, so that what their values mean isn't known.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"got {images.dtype} images; normalize wants uint8 pixels from 0 to 255")
    mean, std = _statistics(images.device)
    return images.float().sub_(mean).div_(std)


@functools.cache  # copied to a GPU once: each copy would make it wait
def _statistics(device):
    return [255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD)]


def augment(images):
    """The training images' augmentation: crop, then flip. uint8 (B, 3, 32, 32) to the same."""
    return random_flip(random_crop(images))


class Batches:
    """Batches of normalised images, cut, augmented and normalised whole on one device.

    Decoding once and keeping the images where the network is spares the workers and
    copies of a DataLoader (the idea of airbench, https://github.com/KellerJordan/cifar10-airbench).

    Args:
        images: uint8 (N, 3, 32, 32).
        labels: int64 (N,).
        device: where the images are kept and the batches come out.
        batch_size: images a batch; the last one may be smaller.
        shuffle: draw the images in a new random order each time.
        transform: maps a batch of uint8 images to another, ``augment`` for training.

    Raises:
        ValueError: no images, or not as many labels as images.
    """

    def __init__(self, images, labels, device="cpu", batch_size=512, shuffle=False, transform=None):
        if len(images) == 0 or len(images) != len(labels):
            raise ValueError(f"got {len(images)} images and {len(labels)} labels; Batches wants one label an image")
        self.images, self.labels = images.to(device), labels.to(device)
        self.batch_size, self.shuffle, self.transform = batch_size, shuffle, transform

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self):
        """Yield (images, labels): float32 (B, 3, 32, 32) and int64 (B,)."""
        n, device = len(self.images), self.images.device
        order = torch.randperm(n, device=device) if self.shuffle else torch.arange(n, device=device)
        for batch in order.split(self.batch_size):
            images = self.images.index_select(0, batch)  # a tenth of the time of images[batch] on a CPU
            yield normalize(self.transform(images) if self.transform else images), self.labels[batch]


# ------------------------------------------------------------------------------
# 2. Training
# ------------------------------------------------------------------------------


def seed_everything(seed):
    """Seed Python, NumPy and PyTorch: on a CPU the same seed and number of threads give the same log."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pick_device():
    """The GPU, if an operation works on it; else the CPU. Says why a GPU that is there isn't used."""
    if torch.cuda.is_available():
        try:
            nn.Conv2d(3, 3, 3, device="cuda")(torch.ones(1, 3, 8, 8, device="cuda")).sum().item()
            return torch.device("cuda")
        except Exception as error:  # of several kinds: no kernels for this GPU, no memory left on it
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f"The CPU is used: a small convolution fails on the GPU ({reason})")
    return torch.device("cpu")


def device_name(device):
    """What the device is called, for a log: the GPU's name, or the CPU's with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text("utf-8", "replace")) if cpuinfo.exists() else []
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"


@functools.cache
def keep_freed_memory():
    """On Linux, keep the large blocks that a training step frees, for the next step.

    Else glibc hands them back to the system and fetches them again page by page,
    which is a quarter of a step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):  # another system, another libc
        return
    trim_threshold, mmap_threshold, most = -1, -3, 2_000_000_000
    # glibc up to 2.34 takes 32 MiB at most. Setting the other one first would end its own adapting of both.
    if mallopt(mmap_threshold, most) or mallopt(mmap_threshold, 32 * 2**20):
        mallopt(trim_threshold, most)


def adam(model):
    """Adam with two groups of parameters, each of which may have its own rate: the blocks' last, all others first."""
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith("blocks.")]
    return torch.optim.Adam([{"params": others}, {"params": list(model.blocks.parameters())}], fused=True)


def one_cycle(optimizer, epochs=24, steps_per_epoch=98, max_lr=0.005, cycle_momentum=False):
    """The one-cycle policy (Smith, https://arxiv.org/abs/1708.07120), linear both ways. Step it after every batch.

    From max_lr / 10 up to max_lr in the first fifth of the steps, then down to
    max_lr / 1000. The assignment names no rate: this shape and the defaults are those
    of the published solution, which left PyTorch's ``cycle_momentum`` on.

    Args:
        max_lr: one rate, or a list of one for each of the optimizer's groups.
        cycle_momentum: move Adam's beta1 against the rate, from 0.95 to 0.85 and back.

    Raises:
        ValueError: fewer than 6 steps in all, which leave no room for the rise.
    """
    if epochs * steps_per_epoch < 6:
        raise ValueError(f"got {epochs} epochs of {steps_per_epoch} steps; one_cycle wants 6 steps or more in all")
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=max_lr,
        epochs=epochs,
        steps_per_epoch=steps_per_epoch,
        pct_start=0.2,
        anneal_strategy="linear",
        div_factor=10,
        final_div_factor=100,
        cycle_momentum=cycle_momentum,
    )


def learning_rates(epochs=24, steps_per_epoch=98, max_lr=0.005):
    """The learning rate of each step of ``one_cycle``: a list of epochs x steps_per_epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))])
    scheduler = one_cycle(optimizer, epochs, steps_per_epoch, max_lr)
    rates = [scheduler.get_last_lr()[0]]
    for _ in range(epochs * steps_per_epoch - 1):
        optimizer.step()
        scheduler.step()
        rates += scheduler.get_last_lr()
    return rates


def find_lr(model, batches, max_lr, block_rate, steps=100):
    """LR range test (Smith, https://arxiv.org/abs/1506.01186) with torch-lr-finder.

    Trains a copy of the model while the learning rate grows from 1e-4 to 1;
    the model itself stays as it is.

    Args:
        max_lr: the rate that training will use, marked on the curve.
        block_rate: the share of the rate that the blocks have, as in training.

    Returns:
        The figure of loss against learning rate.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's notice that its notebook bar is experimental
        from torch_lr_finder import LRFinder, TrainDataLoaderIter, lr_finder

    def slow_blocks(optimizer, *_):
        others, blocks = optimizer.param_groups
        blocks["lr"] = block_rate * others["lr"]

    probe = copy.deepcopy(model)
    optimizer = adam(probe)
    for group in optimizer.param_groups:
        group["lr"] = 1e-4
    optimizer.register_step_pre_hook(slow_blocks)
    finder = LRFinder(probe, optimizer, nn.CrossEntropyLoss(), device=batches.images.device)
    bar, lr_finder.tqdm = lr_finder.tqdm, iter  # its bar would leave a widget
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            finder.range_test(TrainDataLoaderIter(batches), end_lr=1.0, num_iter=steps)
    finally:
        lr_finder.tqdm = bar
    return plot_range_test(finder.history, max_lr)


class Meter:
    """Loss and accuracy of an epoch so far.

    They add up on the device and are read a few times an epoch: a reading in every step
    would make the GPU wait for Python each time.
    """

    def __init__(self, epoch):
        self.epoch, self.losses, self.rates, self.correct, self.seen = epoch, [], [], 0, 0

    def add(self, loss, logits, labels, lr):
        """Add a batch: its mean loss, its logits (B, classes) and labels (B,), the rate of its step."""
        self.losses.append(loss.detach() * len(labels))
        self.correct += (logits.detach().argmax(1) == labels).sum()
        self.seen += len(labels)
        self.rates.append(lr)

    def read(self):
        """(mean loss, accuracy in %).

        Raises:
            FloatingPointError: a loss was not finite; names the epoch, batch and LR.
        """
        losses = torch.stack(self.losses)
        finite = losses.isfinite()
        if not finite.all():
            batch = finite.int().argmin().item()
            raise FloatingPointError(
                f"the loss is {losses[batch].item()} in epoch {self.epoch}, batch {batch}, "
                f"at LR {self.rates[batch]:.6g}: lower max_lr, or look for NaN or infinite values in its images"
            )
        return losses.sum().item() / self.seen, 100 * self.correct.item() / self.seen


def train(model, device, batches, optimizer, scheduler, epoch):
    """Train for one epoch, with a bar in the published log's format.

    Args:
        batches: yields (images, labels); a ``Batches`` or a DataLoader.
        epoch: its number, for the error message.

    Returns:
        (mean loss, accuracy in %) over the epoch.

    Raises:
        FloatingPointError: a loss was not finite; names the epoch, batch and LR.
    """
    keep_freed_memory()
    model.train()
    meter, every = Meter(epoch), math.ceil(len(batches) / 4)
    with tqdm(batches, file=sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}") as bar:
        for step, (images, labels) in enumerate(bar, start=1):
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            meter.add(loss, logits, labels, scheduler.get_last_lr()[0])
            scheduler.step()
            if step % every == 0 or step == len(batches):
                mean, accuracy = meter.read()
                bar.set_description(f"Batch_id={step - 1} Loss={mean:.5f} Accuracy={accuracy:.2f}%", refresh=False)
    return mean, accuracy


@torch.no_grad()
def predict(model, device, batches):
    """Logits (N, classes) and labels (N,) of all images, in eval mode."""
    model.eval()
    logits, labels = zip(*((model(x.to(device)), y.to(device)) for x, y in batches))
    return torch.cat(logits), torch.cat(labels)


@torch.no_grad()
def predict_mirrored(model, device, batches):
    """Probabilities (N, classes), the mean over each image and its mirror image, and labels (N,), in eval mode."""
    model.eval()
    probabilities, labels = [], []
    for x, y in batches:
        x = x.to(device)
        probabilities.append((model(x).softmax(1) + model(x.flip(3)).softmax(1)) / 2)
        labels.append(y.to(device))
    return torch.cat(probabilities), torch.cat(labels)


def test(model, device, batches):
    """Print the test line of the published log's format; return (mean loss, accuracy in %)."""
    logits, labels = predict(model, device, batches)
    loss = F.cross_entropy(logits, labels).item()
    correct, count = (logits.argmax(1) == labels).sum().item(), len(labels)
    accuracy = 100 * correct / count
    print(f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{count} ({accuracy:.2f}%)\n")
    return loss, accuracy


def fit(model, device, train_batches, test_batches, optimizer, scheduler, epochs=24):
    """Train for ``epochs`` and test after each, in the published log's format.

    Stopped within an epoch by whatever it is, the model goes back to its weights before that
    epoch, and ``MARKS`` says so of all that is drawn or saved from then on.

    Returns:
        The history, a dict for each whole epoch: epoch, lr (at its start), train_loss,
        train_accuracy, test_loss, test_accuracy (in %) and seconds. Interrupted by the
        keyboard after the first epoch, it returns the epochs so far.

    Raises:
        ValueError: the schedule has too few steps left, as when it is used a second time.
        FloatingPointError, KeyboardInterrupt and others: what stopped it; its ``history``
            holds the epochs so far.
    """
    MARKS.pop("training", None)
    data_mark, MARKS["training"] = mark(), "training not finished"
    left = scheduler.total_steps - scheduler.last_epoch
    if left < epochs * len(train_batches):
        raise ValueError(
            f"the schedule has {left} steps left, {epochs} epochs take {epochs * len(train_batches)}: "
            "make a new optimizer and a new one_cycle for each training"
        )
    if data_mark:
        print(data_mark)
    history = []
    for epoch in range(1, epochs + 1):
        started, lr = time.perf_counter(), scheduler.get_last_lr()[0]
        before = copy.deepcopy(model.state_dict())
        print(f"EPOCH: {epoch} (LR: {lr})")
        try:
            train_loss, train_accuracy = train(model, device, train_batches, optimizer, scheduler, epoch)
            test_loss, test_accuracy = test(model, device, test_batches)
        except (Exception, KeyboardInterrupt) as stop:
            MARKS["training"] = f"training stopped in epoch {epoch}"
            model.load_state_dict(before)
            if not history or not isinstance(stop, KeyboardInterrupt):
                stop.history = history
                raise
            print(f"\nInterrupted in epoch {epoch}: history and weights are those of the {len(history)} before it.")
            break
        history.append(
            dict(
                epoch=epoch,
                lr=lr,
                train_loss=train_loss,
                train_accuracy=train_accuracy,
                test_loss=test_loss,
                test_accuracy=test_accuracy,
                seconds=time.perf_counter() - started,
            )
        )
    else:
        MARKS.pop("training")
    return history


def save(model, path):
    """Save the model's weights; an older file stays whole until the new one is.

    Raises:
        OSError: ``path`` can't be written; names the cure.
    """
    weights = io.BytesIO()  # writing itself, torch makes a RuntimeError of a full disk
    torch.save(model.state_dict(), weights)
    with _saving(expand(path)) as new:
        new.write_bytes(weights.getvalue())


def load(model, path):
    """Load weights that ``save`` wrote into ``model`` and return it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds more than tensors, or belongs to another
            architecture; the model keeps the weights that it had.
    """
    path = expand(path)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"there are no weights at {path}: run the training first, or check the path") from None
    except Exception as error:  # torch raises many kinds for a file that it can't or won't read
        raise ValueError(f"{path} is damaged or isn't a file of weights: save or fetch it again") from error
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    if not isinstance(weights, dict) or {k: getattr(v, "shape", None) for k, v in weights.items()} != shapes:
        raise ValueError(f"the weights in {path} belong to another architecture than {type(model).__name__}")
    model.load_state_dict(weights)
    return model


# ------------------------------------------------------------------------------
# 3. Measurements
# ------------------------------------------------------------------------------


@torch.no_grad()
def block_inputs(model, images):
    """What each ULTIMUS block receives for normalised images (B, 3, 32, 32): (B, 48) a block."""
    x = model.features(images)
    inputs = []
    for block in model.blocks:
        inputs.append(x)
        x = block(x)
    return inputs


def with_default_init(model):
    """A copy of the model whose fully connected layers have PyTorch's default initialisation."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return model


def block_spectra(model, images):
    """What each block does to its input, for normalised images (B, 3, 32, 32).

    Works on a copy, with BatchNorm in training mode, so that an untrained stem gives
    inputs of its usual size.

    Returns:
        A dict for each block: "map", the 8 largest singular values of d out / d x,
        the block's Jacobian, means over the images; "spread", the standard deviation of Z
        over the images; "departure", that of AM; "mean departure", by how much AM's
        mean over the images departs from the uniform map (root mean square).
    """
    model = copy.deepcopy(model).train()
    rows = []
    for block, x in zip(model.blocks, block_inputs(model, images)):
        with torch.no_grad():
            attention, z = block.attend(x)
        jacobian = torch.func.vmap(torch.func.jacrev(block))(x).detach()  # (B, 48, 48)
        rows.append(
            {
                "map": torch.linalg.svdvals(jacobian.cpu())[:, :8].mean(0).tolist(),  # slow on a GPU
                "spread": z.std(0).mean().item(),
                "departure": attention.var(0).mean().sqrt().item(),
                "mean departure": (attention.mean(0) - attention.mean()).square().mean().sqrt().item(),
            }
        )
    return rows


def head_spectrum(model, images):
    """How strongly each direction of X reaches the logits, for normalised images (B, 3, 32, 32), in eval mode.

    Returns:
        The 10 singular values of d logits / dX, (10, 48), largest first, means over the
        images. What all classes share is taken off, since the softmax doesn't see it, so
        that the last one is zero.
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        x = model.features(images)
    jacobian = torch.func.vmap(torch.func.jacrev(nn.Sequential(model.blocks, model.fc)))(x).detach()  # (B, 10, 48)
    return torch.linalg.svdvals((jacobian - jacobian.mean(1, keepdim=True)).cpu()).mean(0).tolist()


@torch.no_grad()
def passage(model, images):
    """What the blocks leave of the differences between images, along what the first one's keys read.

    For normalised images (B, 3, 32, 32), with BatchNorm in training mode; works on a copy.

    Returns:
        (B, 8) before the blocks and behind each of them: the keys of the first block's
        weights, less their mean over the images. A projection on them leaves them as they are.
    """
    model = copy.deepcopy(model).train()
    x, weight = model.features(images), model.blocks[0].key.weight
    passed = []
    for block in (nn.Identity(), *model.blocks):
        x = block(x)
        passed.append((x - x.mean(0)) @ weight.T)
    return passed


def passage_errors(passed):
    """How far what is behind each block is from what was before them all (``passage``), relative to the latter."""
    before, *behind = passed
    return [((after - before).norm() / before.norm()).item() for after in behind]


def step_effect(model, images, labels, lr):
    """What one step of Adam's size does to what the blocks pass on.

    In its first step Adam moves each weight by the rate, along the sign of its gradient (unless
    that is about 1e-8, Adam's eps, or less).
    That is done here to one kind of layer at a time, in all blocks, on copies.

    Args:
        images: normalised, (B, 3, 32, 32); BatchNorm is in training mode.
        labels: (B,).
        lr: the step.

    Returns:
        {"query": ..., "key": ..., "value": ..., "out": ...}: the change of the differences
        between images behind the last block, relative to these differences.
    """
    model = copy.deepcopy(model).train()
    F.cross_entropy(model(images), labels).backward()
    x = model.features(images).detach()
    before = model.blocks(x).detach()
    effects = {}
    for kind in ("query", "key", "value", "out"):
        blocks = copy.deepcopy(model.blocks)
        with torch.no_grad():
            for moved, block in zip(blocks, model.blocks):
                for weight, old in zip(moved.get_submodule(kind).parameters(), block.get_submodule(kind).parameters()):
                    weight -= lr * old.grad.sign()
            change = blocks(x) - before
        effects[kind] = ((change - change.mean(0)).norm() / (before - before.mean(0)).norm()).item()
    return effects


@torch.no_grad()
def linear_share(model, device, fitted, tested):
    """How much of what blocks and last layer do is a linear map of X: the best one, by least squares.

    Args:
        fitted: batches of images that the map is fitted to.
        tested: batches of others, that it is measured on.

    Returns:
        A dict: "r2", the share of the logits' variance that it explains; "same class", for how
        many of the images (%) it names the network's class; "accuracy" (%), the map's own.
    """
    model.eval()

    def inputs(batches):
        x = torch.cat([model.features(images.to(device)) for images, _ in batches])
        return F.pad(x, (0, 1), value=1.0)  # (N, 49), the last for a bias

    x, logits = inputs(fitted), predict(model, device, fitted)[0]
    weights = torch.linalg.lstsq(x.cpu(), logits.cpu()).solution.to(device)  # (49, 10)
    logits, labels = predict(model, device, tested)
    linear = inputs(tested) @ weights
    guesses = linear.argmax(1)
    return {
        "r2": 1 - ((linear - logits).square().sum() / (logits - logits.mean(0)).square().sum()).item(),
        "same class": 100 * (guesses == logits.argmax(1)).float().mean().item(),
        "accuracy": 100 * (guesses == labels).float().mean().item(),
    }


# ------------------------------------------------------------------------------
# 4. Plots
# ------------------------------------------------------------------------------


def _finish(figure, name):
    """Put the ``mark`` on a figure, save it as images/``name`` in ``output``, and return it for display."""
    if mark():
        figure.text(0.5, 1.01, mark(), ha="center", va="bottom", color="C3", weight="bold")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, so that the file and the display are the same picture
    with _saving(output() / "images" / name) as new:
        figure.savefig(new, bbox_inches="tight")
    plt.close(figure)  # a notebook would show it a second time
    return figure


def _show_image(axes, image, title=""):
    axes.imshow(image.permute(1, 2, 0).cpu().numpy())
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def plot_samples(batches):
    """Four training images, each with seven draws of the batches' augmentation."""
    figure, grid = plt.subplots(4, 8, figsize=(9, 5), layout="constrained")
    for row, image, label in zip(grid, batches.images, batches.labels):
        draws = batches.transform(image.expand(7, -1, -1, -1))
        _show_image(row[0], image, f"{CLASSES[label]}: original")
        for axes, draw in zip(row[1:], draws):
            _show_image(axes, draw)
    figure.suptitle("Training images and seven random draws of flip and crop")
    return _finish(figure, "augmented_samples.png")


def plot_passage(networks, images):
    """What the blocks pass on, for several networks, {name: model}, and normalised images (B, 3, 32, 32).

    Left ``passage``, before and behind the blocks; then ``block_spectra``: the singular
    values of a block's map, and the spread of Z by block.
    """
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for name, model in networks.items():
        passed, rows = passage(model, images), block_spectra(model, images)
        panels[0].plot(passed[0].flatten().cpu(), passed[-1].flatten().cpu(), ".", markersize=2, label=name)
        panels[1].semilogy(range(1, 9), np.mean([row["map"] for row in rows], axis=0), marker="o", label=name)
        panels[2].semilogy(range(1, len(rows) + 1), [row["spread"] for row in rows], marker="o", label=name)
    panels[0].set(title="Differences between images", xlabel="before the blocks", ylabel="behind four blocks")
    panels[1].set(title="Singular values of a block's map", xlabel="index", ylabel="mean over images and blocks")
    panels[2].set(title="Spread of Z over the images", xlabel="block", ylabel="standard deviation")
    panels[2].set_xticks(range(1, len(rows) + 1))
    for axes in panels:
        axes.grid(alpha=0.3)
    panels[0].legend(markerscale=5)
    return _finish(figure, "block_spectra.png")


def plot_range_test(history, max_lr):
    """The loss of an LR range test over its rates, {"lr": ..., "loss": ...}, with the training's max_lr marked."""
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.semilogx(history["lr"], history["loss"])
    axes.axvline(max_lr, color="C3", linestyle="--", label=f"max_lr of the training: {max_lr}")
    axes.set(title="LR range test", xlabel="learning rate", ylabel="training loss (smoothed)")
    axes.set_ylim(0.9 * min(history["loss"]), 1.1 * history["loss"][0])  # the end would flatten the rest
    axes.legend()
    return _finish(figure, "lr_finder.png")


def plot_schedule(rates, steps_per_epoch, block_rate):
    """The learning rate of every step (``learning_rates``) over the epochs, and the blocks', ``block_rate`` of it."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    epochs = np.arange(len(rates)) / steps_per_epoch
    axes.plot(epochs, rates, label="convolutions, last layer")
    axes.plot(epochs, block_rate * np.array(rates), label="blocks")
    axes.set(title="One-cycle policy", xlabel="epoch", ylabel="learning rate")
    axes.legend()
    return _finish(figure, "lr_schedule.png")


def plot_history(history):
    """Training and test loss on one axis, training and test accuracy on another."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, quantity, unit in zip(panels, ("loss", "accuracy"), ("", " (%)")):
        for split in ("train", "test"):
            axes.plot(epochs, [row[f"{split}_{quantity}"] for row in history], marker=".", label=split)
        axes.set(title=f"Training and test {quantity}", xlabel="epoch", ylabel=quantity + unit)
        axes.grid(alpha=0.3)
        axes.legend()
    return _finish(figure, "test_train_loss_accuracy.png")


def plot_misclassified(images, labels, predicted):
    """The first 20 images whose predicted class isn't the actual one, as they look (uint8)."""
    wrong = (predicted != labels).nonzero().flatten()[:20]
    figure, grid = plt.subplots(4, 5, figsize=(9, 8.5), layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, wrong):
        _show_image(axes, images[i], f"actual: {CLASSES[labels[i]]}\npredicted: {CLASSES[predicted[i]]}")
    figure.suptitle("Misclassified test images")
    return _finish(figure, "misclassified_imgs.png")


def plot_confusion(labels, predicted):
    """Confusion matrix: how many images of each actual class got each predicted class."""
    counts = torch.bincount(10 * labels + predicted, minlength=100).view(10, 10).cpu().numpy()
    figure, axes = plt.subplots(figsize=(7.5, 6.5), layout="constrained")
    axes.imshow(counts, cmap="Blues")
    for actual in range(10):
        for guess in range(10):
            count = counts[actual, guess]
            colour = "white" if count > counts.max() / 2 else "black"
            axes.text(guess, actual, count, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(10), CLASSES, rotation=45, ha="right")
    axes.set_yticks(range(10), CLASSES)
    axes.set(title="Confusion matrix of the test images", xlabel="predicted", ylabel="actual")
    return _finish(figure, "confusion_matrix.png")


@torch.no_grad()
def plot_attention(model, images, labels):
    """Each block's attention map of a few images, uint8 (B, 3, 32, 32), beside the image, in eval mode."""
    model.eval()
    inputs = block_inputs(model, normalize(images))
    maps = [block.attend(x)[0].cpu() for block, x in zip(model.blocks, inputs)]  # (B, 8, 8) a block
    uniform = maps[0].mean().item()  # every row has the same sum
    low, high = min(am.min().item() for am in maps), max(am.max().item() for am in maps)
    reach = max(uniform - low, high - uniform)
    rows, columns = len(images), 1 + len(maps)
    figure, grid = plt.subplots(rows, columns, figsize=(1.9 * columns, 2 * rows), layout="constrained")
    for row, image, label, *ams in zip(grid, images, labels, *maps):
        _show_image(row[0], image, CLASSES[label])
        for number, (axes, am) in enumerate(zip(row[1:], ams), start=1):
            picture = axes.imshow(am.numpy(), cmap="RdBu_r", vmin=uniform - reach, vmax=uniform + reach)
            axes.set(title=f"block {number}", xlabel="j (key)", ylabel="i (query)")
    colorbar = figure.colorbar(picture, ax=grid, label=f"AM[i, j]; white: uniform, {uniform:.3f}")
    colorbar.ax.set_ylim(low, high)
    figure.suptitle("Attention maps of single images")
    return _finish(figure, "attention_maps.png")
