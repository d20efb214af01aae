"""Everything around the network: data and transforms, training, measurements, plots."""

import os

# libgomp: a thread of PyTorch that waits for another holds its core for a while. On some processors
# this halves the speed of two trainings at once (experiments/README.md). Only what is set before
# the import of torch counts.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

import contextlib
import copy
import functools
import http.client
import io
import math
import re
import socket
import sys
import time
import warnings
from collections import namedtuple
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock  # which torch requires
from PIL import Image, ImageOps
from torch import nn
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from model9 import Ultimus

# --- 1. Data --------------------------------------------------------------------------------------

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, pixels scaled to [0, 1]
STD = (0.2470, 0.2435, 0.2616)
TIMEOUT = 30  # seconds to wait for a silent server
STAND_IN = "synthetic stand-in"
on_stand_in = False  # which images there are: only load_cifar10 sets it; logs, figures and output_folder read it
Data = namedtuple(
    "Data", "train_images train_labels test_images test_labels"
)  # uint8 (N, 3, 32, 32), int64 (N,)


def output_folder(name=""):
    """The folder ``name`` in ``ULTIMUS_OUTPUT``, else in the working folder; for the stand-in, in
    one of its own."""
    folder = Path(
        os.environ.get("ULTIMUS_OUTPUT") or ".", STAND_IN if on_stand_in else "", name
    ).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load_cifar10():
    """Load CIFAR-10 as ``Data``, 50,000 training and 10,000 test images. Download what is missing
    or damaged.

    The folder of ``cifar-10-batches-py`` is the environment variable ``CIFAR10_ROOT``, else
    ``data``. If the data cannot be had, a synthetic stand-in takes their place. A banner, the log
    and each figure say so.
    """
    global on_stand_in
    root = Path(os.environ.get("CIFAR10_ROOT") or "data").expanduser()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        try:
            test = CIFAR10(root, train=False)  # checks all files
        except RuntimeError:  # missing or damaged
            root.mkdir(parents=True, exist_ok=True)
            with (
                FileLock(root / "download.lock"),
                contextlib.redirect_stderr(sys.stdout),
            ):  # the bar is no error
                test = CIFAR10(
                    root, train=False, download=True
                )  # of two first starts at once the second waits
        splits = CIFAR10(root), test
    except (
        OSError,
        http.client.HTTPException,
        RuntimeError,
        ValueError,
    ) as error:  # network, disk, archive, proxy
        on_stand_in, source, data = True, f"{STAND_IN} (made here)", stand_in()
        print(
            f"{'*' * 88}\nNOT CIFAR-10: SYNTHETIC STAND-IN IMAGES. No accuracy below says anything about CIFAR-10.\n"
            f"CIFAR-10 could not be read from {root} or downloaded from {CIFAR10.url}:\n{type(error).__name__}: "
            f"{error}\nRemove this cause, or unpack the archive into {root}. Then run again.\n{'*' * 88}"
        )
    else:
        on_stand_in, source = False, f"CIFAR-10 ({root})"
        images = [torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous() for split in splits]
        labels = [torch.tensor(split.targets) for split in splits]
        data = Data(images[0], labels[0], images[1], labels[1])
    finally:
        socket.setdefaulttimeout(timeout)
    print(
        f"{source}: {len(data.train_images):,} training and {len(data.test_images):,} test images"
    )
    return data


def stand_in():
    """Make ``Data`` with a tenth as many images as CIFAR-10: a smooth random pattern per class,
    under noise."""
    generator = torch.Generator().manual_seed(0)
    patterns = (
        F.interpolate(torch.randn(10, 3, 6, 6, generator=generator), size=32, mode="bicubic")
        .mul(30)
        .short()
    )
    labels = torch.randint(10, (6_000,), generator=generator)
    noise = torch.randint(-90, 91, (6_000, 3, 32, 32), generator=generator, dtype=torch.int16)
    images = noise.add_(patterns[labels]).add_(128).clamp_(0, 255).to(torch.uint8)
    return Data(images[:5_000], labels[:5_000], images[5_000:], labels[5_000:])


def load_picture(path):
    """Read a picture's central square as the network's input, uint8 (1, 3, 32, 32). ValueError:
    grey of over 8 bits."""
    picture = Image.open(path)
    if (
        picture.mode[0] in "IF"
    ):  # integers of 16 or 32 bits, or floats, which ``convert`` would clip
        raise ValueError(f"{path} has more than 8 bits per channel; save it with 8")
    picture = ImageOps.exif_transpose(picture)  # a phone may store it sideways, with a tag
    white = Image.new(
        "RGBA", picture.size, "white"
    )  # behind transparent pixels, as viewers show them
    picture = Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")
    picture = ImageOps.fit(picture, (32, 32), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def random_crop(images, padding=4):
    """Shift each image by up to ``padding`` pixels and fill the border by reflection. (B, C, H, W)
    to the same."""
    size, device = len(images), images.device
    padded = F.pad(images, [padding] * 4, mode="reflect")
    windows = padded.unfold(2, images.shape[2], 1).unfold(
        3, images.shape[3], 1
    )  # (B, C, 2p + 1, 2p + 1, H, W)
    down, right = torch.randint(2 * padding + 1, (2, size), device=device)
    return windows[torch.arange(size, device=device), :, down, right]  # (B, C, H, W)


def normalize(images):
    """uint8 (B, 3, H, W) to float32, per channel of mean 0 and deviation 1 over CIFAR-10.
    TypeError: not uint8.

    On a CPU the result is channels last, with which the network trains faster. On a GPU it is not:
    with PyTorch from before July 2026 some gradients would be wrong
    (https://github.com/pytorch/pytorch/issues/188344).
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"got {images.dtype} images; normalize wants uint8 pixels from 0 to 255")
    mean, std = _statistics(images.device)
    memory_format = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
    return images.to(torch.float32, memory_format=memory_format).sub_(mean).div_(std)


@functools.cache  # copied to a GPU once: each copy would make it wait
def _statistics(device):
    return [255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD)]


class Batches:
    """Batches of images, uint8 (N, 3, 32, 32), and labels, int64 (N,), augmented and normalised on
    one device.

    There they stay as bytes, without the workers and copies of a DataLoader: an idea of
    https://github.com/KellerJordan/cifar10-airbench. ``shuffle``: in a new random order each time.
    ``transform`` maps a batch of uint8 images to another; ``random_crop`` for training. ValueError:
    no images, or not one label for each.
    """

    def __init__(self, images, labels, device="cpu", batch_size=512, shuffle=False, transform=None):
        if not len(images) == len(labels) > 0:
            raise ValueError(
                f"got {len(images)} images and {len(labels)} labels, not an equal number above zero"
            )
        self.images, self.labels = images.to(device), labels.to(device)
        self.batch_size, self.shuffle = batch_size, shuffle
        self.transform = transform or (lambda images: images)

    def __len__(self):
        return math.ceil(len(self.images) / self.batch_size)

    def __iter__(self):
        """Yield (images, labels): float32 (B, 3, 32, 32) and int64 (B,)."""
        n, device = len(self.images), self.images.device
        order = torch.randperm(n, device=device) if self.shuffle else torch.arange(n, device=device)
        for batch in order.split(self.batch_size):
            images = self.images.index_select(0, batch)  # on a CPU much faster than images[batch]
            yield normalize(self.transform(images)), self.labels[batch]


# --- 2. Training ----------------------------------------------------------------------------------


def pick_device():
    """The GPU, if a convolution works on it; else the CPU. Says why a GPU that is there is not
    used."""
    if torch.cuda.is_available():
        try:
            nn.Conv2d(3, 3, 3, device="cuda")(torch.ones(1, 3, 8, 8, device="cuda")).sum().item()
            return torch.device("cuda")
        except (
            Exception
        ) as error:  # of several kinds: no kernels for this GPU, no memory left on it
            print(
                f"The CPU is used: a small convolution fails on the GPU ({type(error).__name__}: {error})"
            )
    return torch.device("cpu")


def device_name(device):
    """The name of the GPU, or of the CPU with its number of threads, for a log."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    name = (
        re.search(r"model name\s*: (.*)", cpuinfo.read_text("utf-8")) if cpuinfo.exists() else None
    )
    return f"{name[1] if name else 'CPU'}, {torch.get_num_threads()} threads"


def adam(model):
    """Adam with two groups of parameters: first all others, last the blocks, which may have a rate
    of their own."""
    blocks = set(model.blocks.parameters())
    others = [parameter for parameter in model.parameters() if parameter not in blocks]
    optimizer = torch.optim.Adam(
        [{"params": others}, {"params": list(model.blocks.parameters())}], fused=True
    )
    optimizer.register_step_post_hook(
        lambda *_: torch.clear_autocast_cache()
    )  # of the caller's autocast: old weights
    return optimizer


def one_cycle(optimizer, epochs, steps_per_epoch, max_lr):
    """The one-cycle policy (Smith, https://arxiv.org/abs/1708.07120), linear both ways. Step it
    after each batch.

    From max_lr / 10 up to max_lr in the first fifth of the steps, then down to max_lr / 1000, as in
    the published solution, which also cycles beta1. ``max_lr``: a rate, or a list of one per group.
    ValueError: fewer than six steps.
    """
    shape = dict(pct_start=0.2, anneal_strategy="linear", div_factor=10, final_div_factor=100)
    steps = epochs * steps_per_epoch
    if steps < 6:
        raise ValueError(f"got {steps} steps in all; the policy needs six")
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr, steps, **shape, cycle_momentum=False
    )


def find_lr(model, batches, max_lr, block_rate, steps=100):
    """LR range test (Smith, https://arxiv.org/abs/1506.01186) from 1e-4 to 1, on a copy of the
    model.

    The figure marks ``max_lr``. The blocks have ``block_rate`` of the rate, as in training.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's notice that its notebook bar is experimental
        from torch_lr_finder import LRFinder, TrainDataLoaderIter, lr_finder

    probe = copy.deepcopy(model)
    optimizer = adam(probe)
    others, blocks = optimizer.param_groups
    optimizer.register_step_pre_hook(lambda *_: blocks.update(lr=block_rate * others["lr"]))
    finder = LRFinder(probe, optimizer, nn.CrossEntropyLoss())
    with (
        mock.patch.object(lr_finder, "tqdm", iter),
        contextlib.redirect_stdout(io.StringIO()),
    ):  # no bar, no widget
        finder.range_test(TrainDataLoaderIter(batches), start_lr=1e-4, end_lr=1.0, num_iter=steps)

    figure, axes = plt.subplots(figsize=(7, 4))
    finder.plot(skip_start=0, show_lr=max_lr, ax=axes, suggest_lr=False)
    axes.set(
        title=f"LR range test and max_lr = {max_lr}",
        xlabel="learning rate",
        ylabel="training loss (smoothed)",
    )
    return _save(figure, "lr_finder.png")


def train(model, device, batches, optimizer, scheduler, epoch):
    """Train for one epoch, with a bar in the format of the published log. Returns (mean loss,
    accuracy in %).

    Loss and accuracy are read at most four times per epoch: a reading in each step would make a GPU
    wait for Python. ``batches``: a ``Batches`` or a DataLoader. FloatingPointError: a loss was not
    finite. ValueError: no batches.
    """
    model.train()
    losses, correct, seen = [], 0, 0
    every = math.ceil(len(batches) / 4)
    with tqdm(batches, file=sys.stdout, bar_format="{l_bar}{bar:10}{r_bar}") as bar:
        for step, (images, labels) in enumerate(bar, start=1):
            images, labels = images.to(device), labels.to(device)
            model.zero_grad()
            logits = model(images)
            loss = F.cross_entropy(logits, labels)
            loss.backward()
            optimizer.step()
            losses.append(loss.detach() * len(labels))
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
            if step % every == 0 or step == len(batches):
                mean, percent = (
                    sum(torch.stack(losses).tolist()) / seen,
                    100 * correct.item() / seen,
                )
                if not math.isfinite(mean):
                    where = f"in epoch {epoch} by step {step} of {len(batches)}, at LR {scheduler.get_last_lr()[0]:.6g}"
                    raise FloatingPointError(
                        f"the loss is {mean} {where}: lower max_lr, or look for NaN in the images"
                    )
                bar.set_description(
                    f"Batch_id={step - 1} Loss={mean:.5f} Accuracy={percent:.2f}%", refresh=False
                )
            scheduler.step()
    if not seen:
        raise ValueError("there are no batches to train on")
    return mean, percent


@contextlib.contextmanager
def eval_mode(model):
    """The model in eval mode and without gradients, until the end of the block."""
    mode = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()  # of weights without a gradient
        model.train(mode)


def predict(model, device, batches, function=None):
    """Logits (N, classes), or ``function`` of the images, and labels (N,), of one pass in eval
    mode."""
    with eval_mode(model):
        pairs = [
            ((function or model)(images.to(device)), labels.to(device))
            for images, labels in batches
        ]
    if not pairs:
        raise ValueError("there are no batches to predict")
    return tuple(map(torch.cat, zip(*pairs)))


def accuracy(scores, labels):
    """The accuracy in % of scores (N, classes) for labels (N,)."""
    return 100 * (scores.argmax(1) == labels).sum().item() / len(labels)


def test(model, device, batches):
    """Print the test line of the published log's format; return (mean loss, accuracy in %)."""
    logits, labels = predict(model, device, batches)
    loss, percent = F.cross_entropy(logits, labels).item(), accuracy(logits, labels)
    right = round(percent * len(labels) / 100)
    print(f"Test set: Average loss: {loss:.4f}, Accuracy: {right}/{len(labels)} ({percent:.2f}%)\n")
    return loss, percent


def fit(model, device, train_batches, test_batches, optimizer, scheduler, epochs, history):
    """Train for ``epochs`` and test after each, in the format of the published log.

    Each finished epoch is appended to the empty list ``history``, so that a stopped training keeps
    it: a dict of epoch, lr (of its first step), train_loss, train_accuracy, test_loss,
    test_accuracy, seconds. ValueError: used before.
    """
    if history or scheduler.last_epoch:
        raise ValueError(
            "history or scheduler has been used: make model, optimizer, scheduler and history anew"
        )
    if on_stand_in:
        print(f"[{STAND_IN}]")
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        row = {"epoch": epoch, "lr": scheduler.get_last_lr()[0]}
        print(f"EPOCH: {epoch} (LR: {row['lr']})")
        row["train_loss"], row["train_accuracy"] = train(
            model, device, train_batches, optimizer, scheduler, epoch
        )
        row["test_loss"], row["test_accuracy"] = test(model, device, test_batches)
        row["seconds"] = time.perf_counter() - started
        history.append(row)


# --- 3. Measurements ------------------------------------------------------------------------------


def with_default_init(model):
    """A copy of the model whose fully connected layers have PyTorch's default initialisation."""
    model = copy.deepcopy(model)
    for layer in [module for module in model.modules() if isinstance(module, nn.Linear)]:
        layer.reset_parameters()
    return model


class Residual(Ultimus):
    """A block with a residual (He et al., https://arxiv.org/abs/1512.03385). The assignment has
    none."""

    def forward(self, x):
        return x + super().forward(x)  # (B, 48)


@torch.no_grad()
def block_outputs(model, images):
    """X and the output of each block, (B, 48) each, for normalised images (B, 3, 32, 32)."""
    outputs = [model.features(images)]
    for block in model.blocks:
        outputs.append(block(outputs[-1]))
    return outputs


def remaining_variance(model, images):
    """Variance between normalised images, summed over the entries of X and of each block's output,
    per that of X."""
    variances = [x.var(0).sum().item() for x in block_outputs(copy.deepcopy(model).train(), images)]
    return [variance / variances[0] for variance in variances]


def spectrum(model, images):
    """The 9 largest singular values of d logits / dX, without the mean of the logits, which the
    softmax ignores.

    Means over normalised images (B, 3, 32, 32), in the mode of the model, which is left alone.
    """
    head = torch.func.jacrev(lambda one: model.fc(model.blocks(one[None]))[0])  # of (48,) to (10,)
    jacobian = torch.func.vmap(head)(
        copy.deepcopy(model).features(images).detach()
    ).detach()  # (B, 10, 48)
    return (
        torch.linalg.svdvals((jacobian - jacobian.mean(1, keepdim=True)).cpu()).mean(0)[:9].tolist()
    )


def directions(model, images):
    """How many directions of X reach the logits: values of the ``spectrum`` above a hundredth of
    the largest."""
    values = spectrum(model, images)
    return sum(value > 0.01 * values[0] for value in values)


# --- 4. Plots -------------------------------------------------------------------------------------


def _save(figure, name):
    """Save a figure as images/``name``, marked if its data are the stand-in; return it for
    display."""
    if on_stand_in:
        figure.text(0.5, 1.01, f"[{STAND_IN}]", ha="center", va="bottom", color="C3", weight="bold")
    figure.draw_without_rendering()
    figure.set_layout_engine(
        "none"
    )  # laid out once, so that the file and the display are the same picture
    figure.savefig(output_folder("images") / name, bbox_inches="tight")
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
        for axes, picture in zip(row, [image, *draws]):
            _show_image(axes, picture)
        row[0].set_title(f"{CLASSES[label]}: original", fontsize=9)
    figure.suptitle("Training images and seven random crops")
    return _save(figure, "augmented_samples.png")


def plot_blocks(networks, images):
    """What untrained blocks pass on, for several networks, {name: model}, and normalised images (B,
    3, 32, 32)."""
    figure, panels = plt.subplots(1, 2, figsize=(6.5, 3.6), layout="constrained")
    for name, model in networks.items():
        variances, values = remaining_variance(model, images), spectrum(model, images)
        panels[0].semilogy(range(len(variances)), variances, marker="o", label=name)
        panels[1].semilogy(range(1, 10), np.array(values) / values[0], marker="o")
    panels[0].set(
        title="Variance\nbetween images", xlabel="after block", ylabel="share of that of X"
    )
    panels[0].set(xticks=range(len(variances)))
    panels[1].set(
        title="Singular values\nfrom X to the logits",
        xlabel="index",
        ylabel="relative to the largest",
    )
    panels[1].set(ylim=(1e-6, 3), xticks=range(1, 10))  # below is rounding
    for axes in panels:
        axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=len(networks))
    return _save(figure, "block_spectra.png")


def plot_schedule(epochs, steps_per_epoch, max_lr, block_rate):
    """The learning rates of each step of ``one_cycle``: of the blocks, ``block_rate`` of the
    others'."""
    optimizer = torch.optim.SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(2)])
    scheduler = one_cycle(optimizer, epochs, steps_per_epoch, [max_lr, block_rate * max_lr])
    rates = []
    for _ in range(epochs * steps_per_epoch):
        rates.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    figure, axes = plt.subplots(figsize=(7, 3), layout="constrained")
    axes.plot(
        np.arange(len(rates)) / steps_per_epoch, rates, label=["convolutions, last layer", "blocks"]
    )
    axes.set(title="One-cycle policy", xlabel="epoch", ylabel="learning rate")
    axes.legend()
    return _save(figure, "lr_schedule.png")


def plot_history(history):
    """Training and test loss on one axis, training and test accuracy on another."""
    figure, panels = plt.subplots(1, 2, figsize=(6.5, 3.4), layout="constrained")
    epochs = [row["epoch"] for row in history]
    for axes, quantity, unit in zip(panels, ("loss", "accuracy"), ("", " (%)")):
        for split in ("train", "test"):
            axes.plot(
                epochs, [row[f"{split}_{quantity}"] for row in history], marker=".", label=split
            )
        axes.set(title=f"Training and test {quantity}", xlabel="epoch", ylabel=quantity + unit)
        axes.grid(alpha=0.3)
        axes.legend()
    return _save(figure, "test_train_loss_accuracy.png")


def plot_misclassified(model, device, batches):
    """The first 20 images of the batches whose predicted class is not the actual one."""
    mistakes = []
    for images, labels in batches:  # predicted in the same pass: the batches may be shuffled
        predicted = predict(model, device, [(images, labels)])[0].argmax(1).to(images.device)
        mean, std = _statistics(images.device)
        pixels, wrong = (images * std + mean).round().to(torch.uint8), predicted != labels
        mistakes += zip(pixels[wrong], labels[wrong], predicted[wrong])
        if len(mistakes) >= 20:
            break
    figure = plt.figure(figsize=(7, 7), layout="constrained")
    for number, (image, label, guess) in enumerate(mistakes[:20], start=1):
        title = f"actual: {CLASSES[label]}\npredicted: {CLASSES[guess]}"
        _show_image(figure.add_subplot(4, 5, number), image, title)
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


def plot_attention(model, images, labels):
    """The attention map of each block beside a few images, uint8 (B, 3, 32, 32), in eval mode."""
    with eval_mode(model):
        maps = [
            block.attend(x)[0].cpu()
            for block, x in zip(model.blocks, block_outputs(model, normalize(images)))
        ]
    uniform = 8**-1.5  # each row has the sum 1/sqrt(8)
    shown = torch.cat([torch.tensor([uniform]), *(am.flatten() for am in maps)])
    half = (shown - uniform).abs().max().item()  # of the colour scale
    shape = len(images), 1 + len(maps)
    figure, grid = plt.subplots(
        *shape, figsize=(1.5 * shape[1], 1.7 * shape[0]), layout="constrained", squeeze=False
    )
    for row, image, label, *ams in zip(grid, images, labels, *maps):
        _show_image(row[0], image, CLASSES[label])
        for number, (axes, am) in enumerate(zip(row[1:], ams), start=1):
            picture = axes.imshow(
                am.numpy(), cmap="RdBu_r", vmin=uniform - half, vmax=uniform + half
            )
            axes.set(title=f"block {number}", xlabel="j (key)", ylabel="i (query)")
    if maps:
        colorbar = figure.colorbar(
            picture, ax=grid, label=f"AM[i, j]; white: uniform, {uniform:.3f}"
        )
        colorbar.ax.set_ylim(shown.min().item(), shown.max().item())
    figure.suptitle("Attention maps of single images")
    return _save(figure, "attention_maps.png")
