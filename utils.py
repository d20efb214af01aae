"""Data and transforms, the one-cycle schedule, the train and test loops, the plots.

Everything around the network of ``model9.py``, in four sections:

    1. Data        load_cifar10, random_flip, random_crop, augment, normalize, Batches
    2. Schedule    seed_everything, device_name, adam, one_cycle, learning_rates, find_lr
    3. Loops       train, test, fit, predict, save, load
    4. Plots       one function for each figure of the notebook, which it saves; before it, what it measures
"""

import contextlib
import copy
import ctypes
import errno
import functools
import io
import math
import os
import random
import re
import socket
import sys
import textwrap
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.datasets import CIFAR10
from torchvision.datasets.utils import download_and_extract_archive
from tqdm import tqdm

# The figures and weights go here; the tests set it, to leave the committed ones alone.
OUTPUT = Path(os.environ.get("ULTIMUS_OUTPUT", "."))


def _keep_freed_memory():
    """On Linux, keep the large blocks that a training step frees, for the next step.

    Else glibc hands them back to the system and fetches them again page by page,
    which is a quarter of a step on a CPU.
    """
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except OSError:  # another system
        return
    for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
        mallopt(parameter, 2_000_000_000)


_keep_freed_memory()

# ------------------------------------------------------------------------------
# 1. Data
# ------------------------------------------------------------------------------

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, pixels scaled to [0, 1]
STD = (0.2470, 0.2435, 0.2616)
STAND_IN = "synthetic stand-in"
TIMEOUT = 30  # seconds that a silent server is waited for
LOCAL_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR, errno.EEXIST)


@dataclass
class Cifar10:
    """CIFAR-10 in memory.

    Images are uint8 (N, 3, 32, 32), labels int64 (N,). ``note`` is empty for the real
    images and says "synthetic stand-in" for the others: logs and figures carry it.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    note: str = ""


def load_cifar10(root=None):
    """Load CIFAR-10, downloading it only if no whole copy lies under ``root``.

    Where it can't be downloaded, a synthetic stand-in of the same shapes takes its
    place, so that everything still runs; a banner says so, and why.

    Args:
        root: folder that holds, or will hold, ``cifar-10-batches-py``. Default: the
            environment variable ``CIFAR10_ROOT``, else ``data``.

    Returns:
        A ``Cifar10``, 50,000 training and 10,000 test images.

    Raises:
        OSError: ``root`` can't be written to, or its disk is full.
    """
    root = Path(root or os.environ.get("CIFAR10_ROOT", "data"))
    try:
        try:
            data = _read(root)
        except RuntimeError:  # torchvision: a file is missing, or its checksum is wrong
            _download(root)
            data = _read(root)
    except (OSError, RuntimeError, EOFError) as error:
        if getattr(error, "errno", None) in LOCAL_ERRORS:
            raise OSError(
                error.errno,
                f"CIFAR-10 can't be stored in {root} ({error.strerror}). Set CIFAR10_ROOT to a folder "
                "that you may write to, with 400 MB free",
            ) from error
        data = stand_in()
        _banner(root, error)
    n, m = len(data.train_images), len(data.test_images)
    print(f"{data.note or 'CIFAR-10'} ({'made here' if data.note else root}): {n:,} training and {m:,} test images")
    return data


def _read(root):
    splits = []
    for train in (True, False):
        split = CIFAR10(root, train=train)  # verifies every checksum
        splits += [torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(split.targets)]
    return Cifar10(*splits)


def _download(root):
    """Fetch and unpack the archive; an archive that is there and whole is only unpacked."""
    print(f"Downloading CIFAR-10 (170 MB) to {root}, or unpacking what is there ...")
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            download_and_extract_archive(CIFAR10.url, root, filename=CIFAR10.filename, md5=CIFAR10.tgz_md5)
    finally:
        socket.setdefaulttimeout(before)


def _banner(root, error):
    text = (
        "NOT CIFAR-10: SYNTHETIC STAND-IN IMAGES\n"
        f"CIFAR-10 is not in {root}, and the download failed: {error}\n"
        "No accuracy below says anything about CIFAR-10. Connect to the internet, or put the folder "
        f"cifar-10-batches-py into {root}, and run again."
    )
    lines = [part for line in text.splitlines() for part in textwrap.wrap(line, 84)]
    print("\n".join(["*" * 88, *(f"* {line:<84} *" for line in lines), "*" * 88]))


def stand_in():
    """Make images with CIFAR-10's shapes and counts, ten classes that can be learned.

    Each class is a smooth random pattern; an image shows it shifted, at a random
    contrast, under noise and mixed with another class's pattern.

    Returns:
        A ``Cifar10`` whose ``note`` is "synthetic stand-in".
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
    return Cifar10(*splits, note=STAND_IN)


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
# 2. Schedule
# ------------------------------------------------------------------------------


def seed_everything(seed):
    """Seed Python, NumPy and PyTorch: on a CPU the same seed and number of threads give the same log."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device_name(device):
    """What the device is called, for a log: the GPU's name, or the CPU's with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    names = re.findall(r"model name\s*: (.*)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return f"{names[0] if names else 'CPU'}, {torch.get_num_threads()} threads"


def adam(model):
    """Adam with two groups of parameters, each of which may have its own rate: the blocks' last, all others first."""
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith("blocks.")]
    return torch.optim.Adam([{"params": others}, {"params": list(model.blocks.parameters())}], fused=True)


def one_cycle(optimizer, epochs=24, steps_per_epoch=98, max_lr=0.005):
    """The course's one-cycle policy (Smith, https://arxiv.org/abs/1708.07120), linear both ways.

    From max_lr / 10 up to max_lr in the first fifth of the steps, then down to
    max_lr / 1000. Step it after every batch. The defaults are the assignment's.

    Args:
        max_lr: one rate, or a list of one for each of the optimizer's groups.

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
        cycle_momentum=False,
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


def find_lr(model, batches, max_lr, steps=100, note=""):
    """LR range test (Smith, https://arxiv.org/abs/1506.01186) with torch-lr-finder.

    Trains a copy of the model while the learning rate grows from 1e-4 to 1;
    the model itself stays as it is.

    Args:
        max_lr: the rate that training will use, marked on the curve.

    Returns:
        The figure of loss against learning rate.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's notice that its notebook bar is experimental
        from torch_lr_finder import LRFinder, TrainDataLoaderIter, lr_finder

    lr_finder.tqdm = iter  # its bar would leave a widget
    probe = copy.deepcopy(model)
    optimizer = torch.optim.Adam(probe.parameters(), lr=1e-4)
    finder = LRFinder(probe, optimizer, nn.CrossEntropyLoss(), device=batches.images.device)
    with contextlib.redirect_stdout(io.StringIO()):
        finder.range_test(TrainDataLoaderIter(batches), end_lr=1.0, num_iter=steps)
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.semilogx(finder.history["lr"], finder.history["loss"])
    axes.axvline(max_lr, color="C3", linestyle="--", label=f"max_lr of the training: {max_lr}")
    axes.set(title="LR range test", xlabel="learning rate", ylabel="training loss (smoothed)")
    low, start = min(finder.history["loss"]), finder.history["loss"][0]
    axes.set_ylim(0.9 * low, 1.1 * start)  # the divergence at the end would flatten the rest
    axes.legend()
    return _finish(figure, "lr_finder.png", note)


# ------------------------------------------------------------------------------
# 3. Loops
# ------------------------------------------------------------------------------


def train(model, device, batches, optimizer, scheduler, epoch):
    """Train for one epoch, with a bar in the published log's format.

    Loss and accuracy add up on the device and are read for the bar a few times an
    epoch: a reading in every step would make the GPU wait for Python 98 times.

    Args:
        batches: yields (images, labels); a ``Batches`` or a DataLoader.
        epoch: its number, for the error message.

    Returns:
        (mean loss, accuracy in %) over the epoch.

    Raises:
        FloatingPointError: a loss was not finite; names the epoch, batch and LR.
    """
    model.train()
    losses, rates, correct, seen = [], [], 0, 0
    every = math.ceil(len(batches) / 4)
    with tqdm(batches, file=sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}") as bar:
        for step, (images, labels) in enumerate(bar, start=1):
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            rates += scheduler.get_last_lr()[:1]
            scheduler.step()

            losses.append(loss.detach() * len(labels))
            correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if step % every == 0 or step == len(batches):
                mean, accuracy = _read_meters(losses, rates, correct, seen, epoch)
                bar.set_description(f"Batch_id={step - 1} Loss={mean:.5f} Accuracy={accuracy:.2f}%", refresh=False)
    return mean, accuracy


def _read_meters(losses, rates, correct, seen, epoch):
    """Bring the sums of an epoch so far from the device: (mean loss, accuracy in %)."""
    losses = torch.stack(losses)
    finite = losses.isfinite()
    if not finite.all():
        batch = finite.int().argmin().item()
        raise FloatingPointError(
            f"the loss is {losses[batch].item()} in epoch {epoch}, batch {batch}, at LR {rates[batch]:.6g}: "
            "lower max_lr, or look for NaN or infinite values in that batch's images"
        )
    return losses.sum().item() / seen, 100 * correct.item() / seen


@torch.no_grad()
def predict(model, device, batches):
    """Logits (N, classes) and labels (N,) of all images, in eval mode."""
    model.eval()
    logits, labels = zip(*((model(x.to(device)), y.to(device)) for x, y in batches))
    return torch.cat(logits), torch.cat(labels)


def test(model, device, batches):
    """Print the test line of the published log's format; return (mean loss, accuracy in %)."""
    logits, labels = predict(model, device, batches)
    loss = F.cross_entropy(logits, labels).item()
    correct, count = (logits.argmax(1) == labels).sum().item(), len(labels)
    accuracy = 100 * correct / count
    print(f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{count} ({accuracy:.2f}%)\n")
    return loss, accuracy


def fit(model, device, train_batches, test_batches, optimizer, scheduler, epochs=24, note=""):
    """Train for ``epochs`` and test after each, in the published log's format.

    Args:
        note: words that the log must carry, ``Cifar10.note``.

    Returns:
        The history, a dict for each whole epoch: epoch, lr (at its start), train_loss,
        train_accuracy, test_loss, test_accuracy (in %) and seconds. Interrupted by the
        keyboard, it returns the epochs so far.

    Raises:
        ValueError: the schedule has too few steps left, as when it is used a second time.
        FloatingPointError: a loss was not finite. The model is back at its weights before
            that epoch, and the error's ``history`` holds the epochs so far.
    """
    left = scheduler.total_steps - scheduler.last_epoch
    if left < epochs * len(train_batches):
        raise ValueError(
            f"the schedule has {left} steps left, {epochs} epochs take {epochs * len(train_batches)}: "
            "make a new optimizer and a new one_cycle for each training"
        )
    if note:
        print(f"[{note}]")
    history = []
    for epoch in range(1, epochs + 1):
        started, lr = time.perf_counter(), scheduler.get_last_lr()[0]
        before = copy.deepcopy(model.state_dict())
        print(f"EPOCH: {epoch} (LR: {lr})")
        try:
            train_loss, train_accuracy = train(model, device, train_batches, optimizer, scheduler, epoch)
            test_loss, test_accuracy = test(model, device, test_batches)
        except FloatingPointError as error:
            model.load_state_dict(before)
            error.history = history
            raise
        except KeyboardInterrupt:
            print(f"\nInterrupted in epoch {epoch}; the history holds the {len(history)} epochs before it.")
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
    return history


def save(model, path):
    """Save the model's weights; an older file stays whole until the new one is."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".unfinished")
    torch.save(model.state_dict(), unfinished)
    unfinished.replace(path)


def load(model, path):
    """Load weights that ``save`` wrote into ``model`` and return it.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, holds more than tensors, or belongs to another
            architecture; the model keeps the weights that it had.
    """
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
# 4. Plots
# ------------------------------------------------------------------------------


def _finish(figure, name, note):
    """Mark a figure with ``note``, save it as ``OUTPUT/images/name``, and return it for display."""
    if note:
        figure.text(0.5, 1.01, f"[{note}: not CIFAR-10]", ha="center", va="bottom", color="C3", weight="bold")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, so that the file and the display are the same picture
    folder = OUTPUT / "images"
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / name, bbox_inches="tight")
    plt.close(figure)  # a notebook would show it a second time
    return figure


def _show_image(axes, image, title=""):
    axes.imshow(image.permute(1, 2, 0).cpu().numpy())
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def plot_samples(batches, note=""):
    """Four training images, each with seven of its augmentations."""
    figure, grid = plt.subplots(4, 8, figsize=(9, 5), layout="constrained")
    for row, image, label in zip(grid, batches.images, batches.labels):
        draws = augment(image.expand(7, -1, -1, -1))
        _show_image(row[0], image, f"{CLASSES[label]}: original")
        for axes, draw in zip(row[1:], draws):
            _show_image(axes, draw)
    figure.suptitle("Training images and seven random draws of flip and crop")
    return _finish(figure, "augmented_samples.png", note)


def plot_schedule(rates, steps_per_epoch, note=""):
    """The learning rate of every step (``learning_rates``) over the epochs."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(np.arange(len(rates)) / steps_per_epoch, rates)
    axes.set(title="One-cycle policy", xlabel="epoch", ylabel="learning rate")
    return _finish(figure, "lr_schedule.png", note)


def plot_history(history, note=""):
    """Training and test loss on one axis, training and test accuracy on another."""
    figure, panels = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, quantity, unit in zip(panels, ("loss", "accuracy"), ("", " (%)")):
        for split in ("train", "test"):
            axes.plot(epochs, [row[f"{split}_{quantity}"] for row in history], marker=".", label=split)
        axes.set(title=f"Training and test {quantity}", xlabel="epoch", ylabel=quantity + unit)
        axes.grid(alpha=0.3)
        axes.legend()
    return _finish(figure, "test_train_loss_accuracy.png", note)


def plot_misclassified(images, labels, predicted, note=""):
    """The first 20 images whose predicted class isn't the actual one, as they look (uint8)."""
    wrong = (predicted != labels).nonzero().flatten()[:20]
    figure, grid = plt.subplots(4, 5, figsize=(9, 8.5), layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, wrong):
        _show_image(axes, images[i], f"actual: {CLASSES[labels[i]]}\npredicted: {CLASSES[predicted[i]]}")
    figure.suptitle("Misclassified test images")
    return _finish(figure, "misclassified_imgs.png", note)


def plot_confusion(labels, predicted, note=""):
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
    return _finish(figure, "confusion_matrix.png", note)


@torch.no_grad()
def block_inputs(model, images):
    """What each ULTIMUS block receives for normalised images (B, 3, 32, 32): (B, 48) a block."""
    x = model.features(images)
    inputs = []
    for block in model.blocks:
        inputs.append(x)
        x = block(x)
    return inputs


@torch.no_grad()
def attend(block, x):
    """AM (B, 8, 8) and Z (B, 8) of one block for its inputs x (B, 48)."""
    attention = block.attention(x)
    return attention, (block.value(x).unsqueeze(1) @ attention).squeeze(1)


@torch.no_grad()
def plot_attention(model, images, note=""):
    """Mean attention map of each block over normalised images (B, 3, 32, 32), in eval mode."""
    model.eval()
    maps = [b.attention(x).mean(0).cpu().numpy() for b, x in zip(model.blocks, block_inputs(model, images))]
    figure, panels = plt.subplots(1, len(maps), figsize=(11, 3.2), layout="constrained")
    top = max(am.max() for am in maps)
    for number, (axes, am) in enumerate(zip(panels, maps), start=1):
        picture = axes.imshow(am, vmin=0, vmax=top)
        axes.set(title=f"block {number}", xlabel="j (key)", ylabel="i (query)")
    figure.colorbar(picture, ax=panels, label="mean AM[i, j]")
    figure.suptitle("Mean attention map of each block")
    return _finish(figure, "attention_maps.png", note)


def with_default_init(model):
    """A copy of the model whose fully connected layers have PyTorch's default initialisation."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return model


def block_spectra(model, images):
    """How much of its input each block passes on, for normalised images (B, 3, 32, 32).

    Works on a copy, with BatchNorm in training mode, so that an untrained stem gives
    inputs of its usual size.

    Returns:
        A dict for each block, means over the images: "attention", the 8 singular values
        of AM; "map", the 8 largest of d out / d x, the block's Jacobian; "spread", the
        standard deviation of Z over the images.
    """
    model = copy.deepcopy(model).train()
    rows = []
    for block, x in zip(model.blocks, block_inputs(model, images)):
        attention, z = attend(block, x)
        jacobian = torch.func.vmap(torch.func.jacrev(block))(x)  # (B, 48, 48)
        rows.append(
            {
                "attention": torch.linalg.svdvals(attention).mean(0).tolist(),
                "map": torch.linalg.svdvals(jacobian.detach())[:, :8].mean(0).tolist(),
                "spread": z.std(0).mean().item(),
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
    return torch.linalg.svdvals(jacobian - jacobian.mean(1, keepdim=True)).mean(0).tolist()


def plot_spectra(spectra, note=""):
    """Compare ``block_spectra`` of several networks, {name: spectra}: mean spectra, spread by block."""
    figure, panels = plt.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for name, rows in spectra.items():
        for axes, key in zip(panels, ("attention", "map")):
            axes.semilogy(range(1, 9), np.mean([row[key] for row in rows], axis=0), marker="o", label=name)
        panels[2].semilogy(range(1, len(rows) + 1), [row["spread"] for row in rows], marker="o", label=name)
    panels[0].set_ylim(bottom=1e-6)
    panels[0].set(title="Singular values of AM", xlabel="index", ylabel="mean over images and blocks")
    panels[1].set(title="Singular values of a block's map", xlabel="index", ylabel="mean over images and blocks")
    panels[2].set(title="Spread of Z over the images", xlabel="block", ylabel="standard deviation", xticks=range(1, 5))
    for axes in panels:
        axes.grid(alpha=0.3)
        axes.legend()
    return _finish(figure, "block_spectra.png", note)
