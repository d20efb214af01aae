"""Everything around the network: data and transforms, training, measurements, plots."""

import contextlib
import copy
import ctypes
import functools
import io
import math
import os
import random
import re
import socket
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import NamedTuple
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn
from torchvision.datasets import CIFAR10
from tqdm import tqdm

# ------------------------------------------------------------------------------
# 1. Data
# ------------------------------------------------------------------------------

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, pixels scaled to [0, 1]
STD = (0.2470, 0.2435, 0.2616)
STAND_IN = "synthetic stand-in"
TIMEOUT = 30  # seconds to wait for a silent server

# Where figures and weights go. Tests leave the working folder alone; the notebook's kernel inherits the variable.
WORKING_FOLDER = Path(tempfile.mkdtemp(prefix="ultimus-") if "PYTEST_CURRENT_TEST" in os.environ else ".")
output = WORKING_FOLDER


def stand_in_note():
    """What logs and figures say of their data: nothing for CIFAR-10."""
    return f"[{STAND_IN}]" if output.name == STAND_IN else ""


class Images(NamedTuple):
    """CIFAR-10 in memory: images, uint8 (N, 3, 32, 32), and labels, int64 (N,)."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


def load_cifar10(root=None):
    """Load CIFAR-10, or download it where it is missing or damaged.

    If that fails, a synthetic stand-in of the same shapes takes its place. A banner, the log and
    each figure say so, and ``output`` becomes a folder of its own: no figure or weight of
    CIFAR-10 is overwritten.

    Args:
        root: folder of ``cifar-10-batches-py``. Default: the environment variable
            ``CIFAR10_ROOT``, else ``data``.

    Returns:
        ``Images``: 50,000 for training and 10,000 for the test.
    """
    global output
    root = Path(root or os.environ.get("CIFAR10_ROOT") or "data").expanduser()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        with contextlib.redirect_stderr(sys.stdout):  # the bar, which is no error
            splits = CIFAR10(root, download=True), CIFAR10(root, train=False)
    except Exception as error:  # of many kinds: no network, a proxy's page, a broken archive, a full disk
        output = WORKING_FOLDER / STAND_IN
        print(
            f"{'*' * 88}\nNOT CIFAR-10: SYNTHETIC STAND-IN IMAGES. No accuracy below says anything about CIFAR-10.\n"
            f"CIFAR-10 could not be read from {root} or downloaded from {CIFAR10.url}:\n"
            f"{type(error).__name__}: {error}\n"
            f"Remove this cause, or unpack the archive into {root} yourself. Then run again.\n{'*' * 88}"
        )
        data, source = stand_in(), f"{STAND_IN} (made here)"
    else:
        output = WORKING_FOLDER
        tensors = [(torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(s.targets)) for s in splits]
        data, source = Images(*tensors[0], *tensors[1]), f"CIFAR-10 ({root})"
    finally:
        socket.setdefaulttimeout(timeout)
    output.mkdir(exist_ok=True)
    print(f"{source}: {len(data.train_images):,} training and {len(data.test_images):,} test images")
    return data


def stand_in():
    """Make ``Images`` of CIFAR-10's shapes and counts: a smooth random pattern a class, under noise."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(10, 3, 6, 6, generator=generator)
    patterns = F.interpolate(coarse, size=32, mode="bicubic").mul(30).short()  # (10, 3, 32, 32)

    def make(count):
        labels = torch.randint(10, (count,), generator=generator)
        noise = torch.randint(-90, 91, (count, 3, 32, 32), generator=generator, dtype=torch.int16)
        return noise.add_(patterns[labels]).add_(128).clamp_(0, 255).to(torch.uint8), labels

    return Images(*make(50_000), *make(10_000))


def load_picture(path):
    """Read a picture file of any size as the network's input: its central square, uint8 (1, 3, 32, 32)."""
    picture = ImageOps.exif_transpose(Image.open(path))  # a phone may store it sideways, with a tag
    if picture.mode.startswith("I"):  # 16 bits a pixel, which ``convert`` would clip to white
        picture = Image.fromarray((np.asarray(picture) // 256).astype(np.uint8))
    picture = ImageOps.fit(picture.convert("RGB"), (32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def random_flip(images, p=0.5):
    """Mirror each image left to right with probability ``p``. (B, C, H, W) to the same."""
    mirrored = torch.rand(len(images), 1, 1, 1, device=images.device) < p
    return torch.where(mirrored, images.flip(3), images)


def random_crop(images, padding=2):
    """Shift each image by up to ``padding`` pixels and fill the border by reflection. (B, C, H, W) to the same."""
    size, device = len(images), images.device
    padded = F.pad(images, [padding] * 4, mode="reflect")
    windows = padded.unfold(2, images.shape[2], 1).unfold(3, images.shape[3], 1)  # (B, C, 2p + 1, 2p + 1, H, W)
    down, right = torch.randint(2 * padding + 1, (2, size), device=device)
    return windows[torch.arange(size, device=device), :, down, right]  # (B, C, H, W)


def augment(images):
    """The augmentation of the training images: crop, then flip. uint8 (B, 3, 32, 32) to the same."""
    return random_flip(random_crop(images))


def normalize(images):
    """uint8 (B, 3, H, W) to float32 with CIFAR-10's mean 0 and standard deviation 1 per channel.

    Raises:
        TypeError: the images are not uint8, so that the range of their values is not known.
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"got {images.dtype} images; normalize wants uint8 pixels from 0 to 255")
    mean, std = _statistics(images.device)
    return images.float().sub_(mean).div_(std)


@functools.cache  # copied to a GPU once: each copy would make it wait
def _statistics(device):
    return [255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD)]


class Batches:
    """Batches of normalised images, augmented and normalised on one device, where they stay as bytes.

    This spares the workers and copies of a DataLoader (an idea of airbench,
    https://github.com/KellerJordan/cifar10-airbench).

    Args:
        images, labels: uint8 (N, 3, 32, 32) and int64 (N,).
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
    """Seed Python, NumPy and PyTorch. On a CPU the same seed and number of threads give the same log."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pick_device():
    """The GPU, if a convolution works on it; else the CPU. Says why a GPU that is there is not used."""
    if torch.cuda.is_available():
        try:
            nn.Conv2d(3, 3, 3, device="cuda")(torch.ones(1, 3, 8, 8, device="cuda")).sum().item()
            return torch.device("cuda")
        except Exception as error:  # of several kinds: no kernels for this GPU, no memory left on it
            reason = (str(error) or type(error).__name__).splitlines()[0]
            print(f"The CPU is used: a small convolution fails on the GPU ({reason})")
    return torch.device("cpu")


def device_name(device):
    """The name of the GPU, or of the CPU with its number of threads, for a log."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    name = re.search(r"model name\s*: (.*)", cpuinfo.read_text("utf-8")) if cpuinfo.exists() else None
    return f"{name[1] if name else 'CPU'}, {torch.get_num_threads()} threads"


@functools.cache
def keep_freed_memory():
    """On Linux, keep the memory that a training step frees for the next step.

    Else glibc hands large blocks back to the system and fetches them again page by page,
    which takes a quarter of a step on a CPU.
    """
    with contextlib.suppress(OSError, AttributeError):  # another system, another libc
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        trim_threshold, mmap_threshold, most = -1, -3, 2_000_000_000
        # glibc up to 2.34 takes 32 MiB at most. The other one alone would end its own adapting of both.
        if mallopt(mmap_threshold, most) or mallopt(mmap_threshold, 32 * 2**20):
            mallopt(trim_threshold, most)


def adam(model):
    """Adam with two groups of parameters: first all others, last the blocks, which may have a rate of their own."""
    others = [parameter for name, parameter in model.named_parameters() if not name.startswith("blocks.")]
    return torch.optim.Adam([{"params": others}, {"params": list(model.blocks.parameters())}], fused=True)


def one_cycle(optimizer, epochs=24, steps_per_epoch=98, max_lr=0.005, cycle_momentum=False):
    """The one-cycle policy (Smith, https://arxiv.org/abs/1708.07120), linear both ways. Step it after each batch.

    From max_lr / 10 up to max_lr in the first fifth of the steps, then down to max_lr / 1000:
    shape and defaults are those of the published solution, whose Adam also cycles its beta1
    (``cycle_momentum``). ``max_lr`` may be a list of one rate for each group of the optimizer.
    """
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
    rates = []
    for _ in range(epochs * steps_per_epoch):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    return rates


def find_lr(model, batches, max_lr, block_rate, steps=100):
    """LR range test (Smith, https://arxiv.org/abs/1506.01186) from 1e-4 to 1, on a copy of the model.

    The figure of loss against learning rate marks ``max_lr``. The blocks have ``block_rate`` of
    the rate, as in training.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's notice that its notebook bar is experimental
        from torch_lr_finder import LRFinder, TrainDataLoaderIter, lr_finder

    probe = copy.deepcopy(model)
    optimizer = adam(probe)
    others, blocks = optimizer.param_groups
    others["lr"] = blocks["lr"] = 1e-4
    optimizer.register_step_pre_hook(lambda *_: blocks.update(lr=block_rate * others["lr"]))
    finder = LRFinder(probe, optimizer, nn.CrossEntropyLoss(), device=batches.images.device)
    with mock.patch.object(lr_finder, "tqdm", iter), contextlib.redirect_stdout(io.StringIO()):  # no bar, no widget
        finder.range_test(TrainDataLoaderIter(batches), end_lr=1.0, num_iter=steps)

    rates, losses = finder.history["lr"], finder.history["loss"]
    figure, axes = plt.subplots(figsize=(7, 4))
    axes.semilogx(rates, losses)
    axes.axvline(max_lr, color="C3", linestyle="--", label=f"max_lr of the training: {max_lr}")
    axes.set(title="LR range test", xlabel="learning rate", ylabel="training loss (smoothed)")
    axes.set_ylim(0.9 * min(losses), 1.1 * losses[0])  # the end would flatten the rest
    axes.legend()
    return _save(figure, "lr_finder.png")


def train(model, device, batches, optimizer, scheduler, epoch):
    """Train for one epoch, with a bar in the format of the published log.

    Loss and accuracy add up on the device and are read four times an epoch: a reading in each
    step would make the GPU wait for Python. ``batches`` is a ``Batches`` or a DataLoader.

    Returns:
        (mean loss, accuracy in %) over the epoch.

    Raises:
        FloatingPointError: a loss was not finite.
    """
    keep_freed_memory()
    model.train()
    total = correct = seen = 0
    every = math.ceil(len(batches) / 4)
    with tqdm(batches, file=sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}") as bar:
        for step, (images, labels) in enumerate(bar, start=1):
            images, labels = images.to(device), labels.to(device)
            optimizer.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            lr = scheduler.get_last_lr()[0]
            scheduler.step()
            total += loss.detach().double() * len(labels)
            correct += (logits.detach().argmax(1) == labels).sum()
            seen += len(labels)
            if step % every == 0 or step == len(batches):
                mean, percent = total.item() / seen, 100 * correct.item() / seen
                if not math.isfinite(mean):
                    raise FloatingPointError(
                        f"the loss is {mean} in epoch {epoch} by step {step} of {len(batches)}, at LR {lr:.6g}: "
                        "lower max_lr, or look for NaN or infinite values in the images"
                    )
                bar.set_description(f"Batch_id={step - 1} Loss={mean:.5f} Accuracy={percent:.2f}%", refresh=False)
    return mean, percent


@torch.no_grad()
def predict(model, device, batches):
    """Logits (N, classes) and labels (N,) of all images, in eval mode."""
    model.eval()
    logits, labels = zip(*((model(x.to(device)), y.to(device)) for x, y in batches))
    return torch.cat(logits), torch.cat(labels)


def predict_mirrored(model, device, batches):
    """Probabilities (N, classes), the mean over each image and its mirror image, and labels (N,), in eval mode."""
    logits, labels = predict(model, device, batches)
    mirrored, _ = predict(model, device, ((x.flip(3), y) for x, y in batches))
    return (logits.softmax(1) + mirrored.softmax(1)) / 2, labels


def accuracy(scores, labels):
    """For how many of the images (%) the highest of the scores (N, classes) is that of the label (N,)."""
    return 100 * (scores.argmax(1) == labels).double().mean().item()


def test(model, device, batches):
    """Print the test line of the published log's format; return (mean loss, accuracy in %)."""
    logits, labels = predict(model, device, batches)
    loss, percent = F.cross_entropy(logits, labels).item(), accuracy(logits, labels)
    correct = (logits.argmax(1) == labels).sum()
    print(f"Test set: Average loss: {loss:.4f}, Accuracy: {correct}/{len(labels)} ({percent:.2f}%)\n")
    return loss, percent


def fit(model, device, train_batches, test_batches, optimizer, scheduler, epochs, history):
    """Train for ``epochs`` and test after each, in the format of the published log.

    Args:
        history: a list, to which each finished epoch is appended, so that a stopped training keeps its epochs:
            a dict of epoch, lr (of its first step), train_loss, train_accuracy, test_loss, test_accuracy, seconds.
    """
    if note := stand_in_note():
        print(note)
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        row = {"epoch": epoch, "lr": scheduler.get_last_lr()[0]}
        print(f"EPOCH: {epoch} (LR: {row['lr']})")
        row["train_loss"], row["train_accuracy"] = train(model, device, train_batches, optimizer, scheduler, epoch)
        row["test_loss"], row["test_accuracy"] = test(model, device, test_batches)
        row["seconds"] = time.perf_counter() - started
        history.append(row)


# ------------------------------------------------------------------------------
# 3. Measurements
# ------------------------------------------------------------------------------


def with_default_init(model):
    """A copy of the model whose fully connected layers have PyTorch's default initialisation."""
    model = copy.deepcopy(model)
    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    return model


@torch.no_grad()
def block_outputs(model, images):
    """X and the output of each block, (B, 48) each, for normalised images (B, 3, 32, 32)."""
    outputs = [model.features(images)]
    for block in model.blocks:
        outputs.append(block(outputs[-1]))
    return outputs


def differences(model, images):
    """What distinguishes the images before the blocks and after each, along eight directions.

    The directions are those that the keys of the first block read. BatchNorm is in training mode,
    on a copy of the model. Returns a list of (B, 8), each of mean zero over the images.
    """
    model = copy.deepcopy(model).train()
    directions = model.blocks[0].key.weight.detach()  # (8, 48)
    return [(x - x.mean(0)) @ directions.T for x in block_outputs(model, images)]


def remaining_variance(passed):
    """The variance between images of each of the ``differences``, as a share of the first."""
    variances = [difference.square().sum().item() for difference in passed]
    return [variance / variances[0] for variance in variances]


def spectrum(model, images):
    """How strongly each direction of X reaches the logits: singular values of d logits / dX, in eval mode.

    The mean over the ten logits is subtracted, since the softmax does not see it. Returns the 9
    largest singular values, means over the images, normalised (B, 3, 32, 32).
    """
    model = copy.deepcopy(model).eval()
    with torch.no_grad():
        x = model.features(images)

    def head(one):  # (48,) to (10,)
        return model.fc(model.blocks(one[None]))[0]

    jacobian = torch.func.vmap(torch.func.jacrev(head))(x).detach()  # (B, 10, 48)
    return torch.linalg.svdvals((jacobian - jacobian.mean(1, keepdim=True)).cpu()).mean(0)[:9].tolist()


@torch.no_grad()
def linear_share(model, device, fitted, tested):
    """Fit the best linear map from X to the logits to batches ``fitted``, and measure it on batches ``tested``.

    Returns:
        (R², accuracy): the share of the logits' variance that the map explains, and its own accuracy in %.
    """

    def inputs(batches):
        x = torch.cat([model.features(images.to(device)) for images, _ in batches])
        return F.pad(x, (0, 1), value=1.0)  # (N, 49), the last for a bias

    logits, _ = predict(model, device, fitted)
    weights = torch.linalg.lstsq(inputs(fitted).cpu(), logits.cpu()).solution.to(device)  # (49, 10)
    logits, labels = predict(model, device, tested)
    linear = inputs(tested) @ weights
    r2 = 1 - ((linear - logits).square().sum() / (logits - logits.mean(0)).square().sum()).item()
    return r2, accuracy(linear, labels)


# ------------------------------------------------------------------------------
# 4. Plots
# ------------------------------------------------------------------------------


def _save(figure, name):
    """Save a figure as images/``name`` in ``output``, marked if its data are the stand-in; return it for display."""
    if note := stand_in_note():
        figure.text(0.5, 1.01, note, ha="center", va="bottom", color="C3", weight="bold")
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # laid out once, so that the file and the display are the same picture
    path = output / "images" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, bbox_inches="tight")
    plt.close(figure)  # a notebook would show it a second time
    return figure


def _show_image(axes, image, title=""):
    axes.imshow(image.permute(1, 2, 0).cpu().numpy())
    axes.set_title(title, fontsize=9)
    axes.axis("off")


def plot_samples(batches):
    """Four training images, each with seven draws of the batches' augmentation."""
    figure, grid = plt.subplots(4, 8, figsize=(7, 4), layout="constrained")
    for row, image, label in zip(grid, batches.images, batches.labels):
        draws = batches.transform(image.expand(7, -1, -1, -1))
        _show_image(row[0], image, f"{CLASSES[label]}: original")
        for axes, draw in zip(row[1:], draws):
            _show_image(axes, draw)
    figure.suptitle("Training images and seven random draws of crop and flip")
    return _save(figure, "augmented_samples.png")


def plot_blocks(networks, images):
    """What new blocks pass on, for several networks, {name: model}, and normalised images (B, 3, 32, 32)."""
    figure, panels = plt.subplots(1, 3, figsize=(8, 3.4), layout="constrained")
    for name, model in networks.items():
        before, *_, after = passed = differences(model, images)
        values, shares = spectrum(model, images), remaining_variance(passed)
        panels[0].plot(before.flatten().cpu(), after.flatten().cpu(), ".", markersize=2, label=name)
        panels[1].semilogy(range(len(shares)), shares, marker="o", label=name)
        panels[2].semilogy(range(1, 10), np.array(values) / values[0], marker="o", label=name)
    panels[0].set(title="Differences\nbetween images", xlabel="before the blocks", ylabel="after four blocks")
    panels[1].set(title="Variance between\nimages that remains", xlabel="after block", ylabel="share")
    panels[2].set(title="Singular values\nfrom X to the logits", xlabel="index", ylabel="relative to the largest")
    panels[2].set(ylim=(1e-6, None), xticks=range(1, 10, 2))  # below is rounding
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=len(networks))
    return _save(figure, "block_spectra.png")


def plot_schedule(rates, steps_per_epoch, block_rate):
    """The learning rate of each step (``learning_rates``) over the epochs, and ``block_rate`` of it for the blocks."""
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    epochs = np.arange(len(rates)) / steps_per_epoch
    axes.plot(epochs, rates, label="convolutions, last layer")
    axes.plot(epochs, block_rate * np.array(rates), label="blocks")
    axes.set(title="One-cycle policy", xlabel="epoch", ylabel="learning rate")
    axes.legend()
    return _save(figure, "lr_schedule.png")


def plot_history(history):
    """Training and test loss on one axis, training and test accuracy on another."""
    figure, panels = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, quantity, unit in zip(panels, ("loss", "accuracy"), ("", " (%)")):
        for split in ("train", "test"):
            axes.plot(epochs, [row[f"{split}_{quantity}"] for row in history], marker=".", label=split)
        axes.set(title=f"Training and test {quantity}", xlabel="epoch", ylabel=quantity + unit)
        axes.grid(alpha=0.3)
        axes.legend()
    return _save(figure, "test_train_loss_accuracy.png")


def plot_misclassified(images, labels, predicted):
    """The first 20 images (uint8) whose predicted class is not the actual one."""
    wrong = (predicted != labels).nonzero().flatten()[:20]
    figure, grid = plt.subplots(4, 5, figsize=(7, 7), layout="constrained")
    for axes in grid.flat:
        axes.axis("off")
    for axes, i in zip(grid.flat, wrong):
        _show_image(axes, images[i], f"actual: {CLASSES[labels[i]]}\npredicted: {CLASSES[predicted[i]]}")
    figure.suptitle("Misclassified test images")
    return _save(figure, "misclassified_imgs.png")


def plot_confusion(labels, predicted):
    """Confusion matrix: how many images of each actual class got each predicted class."""
    counts = torch.bincount(10 * labels + predicted, minlength=100).view(10, 10).cpu().numpy()
    figure, axes = plt.subplots(figsize=(7.5, 6.5), layout="constrained")
    axes.imshow(counts, cmap="Blues")
    for (actual, guess), count in np.ndenumerate(counts):
        colour = "white" if count > counts.max() / 2 else "black"
        axes.text(guess, actual, count, ha="center", va="center", color=colour, fontsize=8)
    axes.set_xticks(range(10), CLASSES, rotation=45, ha="right")
    axes.set_yticks(range(10), CLASSES)
    axes.set(title="Confusion matrix of the test images", xlabel="predicted", ylabel="actual")
    return _save(figure, "confusion_matrix.png")


@torch.no_grad()
def plot_attention(model, images, labels):
    """The attention map of each block beside a few images, uint8 (B, 3, 32, 32), in eval mode."""
    model.eval()
    inputs = block_outputs(model, normalize(images))
    maps = [block.attend(x)[0].cpu() for block, x in zip(model.blocks, inputs)]  # (B, 8, 8) a block
    uniform = maps[0].mean().item()  # each row has the same sum
    low, high = min(am.min().item() for am in maps), max(am.max().item() for am in maps)
    reach = max(uniform - low, high - uniform)
    rows, columns = len(images), 1 + len(maps)
    figure, grid = plt.subplots(rows, columns, figsize=(1.5 * columns, 1.7 * rows), layout="constrained")
    for row, image, label, *ams in zip(grid, images, labels, *maps):
        _show_image(row[0], image, CLASSES[label])
        for number, (axes, am) in enumerate(zip(row[1:], ams), start=1):
            picture = axes.imshow(am.numpy(), cmap="RdBu_r", vmin=uniform - reach, vmax=uniform + reach)
            axes.set(title=f"block {number}", xlabel="j (key)", ylabel="i (query)")
    colorbar = figure.colorbar(picture, ax=grid, label=f"AM[i, j]; white: uniform, {uniform:.3f}")
    colorbar.ax.set_ylim(low, high)
    figure.suptitle("Attention maps of single images")
    return _save(figure, "attention_maps.png")
