"""Everything around the network: data and transforms, training, measurements, plots."""

import contextlib
import copy
import functools
import io
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import time
import warnings
from collections import namedtuple
from pathlib import Path
from unittest import mock

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F
from IPython import display
from PIL import Image, ImageCms, ImageOps
from torch import nn
from torch.overrides import TorchFunctionMode
from torchvision.datasets import CIFAR10
from tqdm import tqdm

from model9 import Ultimus

# --- 1. Data --------------------------------------------------------------------------------------

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEAN = (0.4914, 0.4822, 0.4465)  # of CIFAR-10's training images, pixels scaled to [0, 1]
STD = (0.2470, 0.2435, 0.2616)
TIMEOUT = 30  # seconds to wait for a silent server
STAND_IN = "synthetic stand-in"
Data = namedtuple("Data", "train_images train_labels test_images test_labels")  # as in load_cifar10


def on_stand_in():
    """Whether ``load_cifar10`` put the stand-in in CIFAR-10's place. Logs and figures say so."""
    return getattr(CIFAR10, "replaced", False)  # a name of this module is lost when it reloads


def output_folder(name=""):
    """The folder ``name`` in ``ULTIMUS_OUTPUT``, else in the working folder.

    Results of the stand-in have a folder of their own there.
    """
    mark = STAND_IN if on_stand_in() else ""
    folder = Path(os.environ.get("ULTIMUS_OUTPUT") or ".", mark, name).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


class _Files(CIFAR10):
    def _load_meta(self):
        """Nothing here comes from batches.meta, so it may be missing."""


def _download(root):
    """Download to a folder of its own, then move each file: another download may run meanwhile."""
    root.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix="download-", dir=root) as new,
        contextlib.redirect_stderr(sys.stdout),  # the bar is no error
    ):
        archive, files = root / CIFAR10.filename, CIFAR10.base_folder
        if archive.exists():
            shutil.copy(archive, new)
        CIFAR10(new, train=False, download=True)
        shutil.copytree(
            Path(new, files), root / files, copy_function=os.replace, dirs_exist_ok=True
        )


def _read(root):
    """The ``Data`` of the files in a folder. RuntimeError: one is missing or damaged."""
    parts = []
    for split in (_Files(root), _Files(root, train=False)):
        parts.append(torch.from_numpy(split.data).permute(0, 3, 1, 2).contiguous())
        parts.append(torch.tensor(split.targets))
    return Data(*parts)


def load_cifar10():
    """Load CIFAR-10: 50,000 training and 10,000 test images. Download what is missing or damaged.

    The folder of ``cifar-10-batches-py`` is the environment variable ``CIFAR10_ROOT``, else
    ``data``. If the data cannot be had, a synthetic stand-in takes their place. A banner, the log
    and each figure say so.

    Returns:
        ``Data``: images, uint8 (N, 3, 32, 32), and labels, int64 (N,).
    """
    root = Path(os.environ.get("CIFAR10_ROOT") or "data").expanduser()
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        try:
            data = _read(root)
        except RuntimeError:
            _download(root)
            data = _read(root)
    except Exception as error:  # of the network, the server, the disk or the files
        CIFAR10.replaced, source, data = True, f"{STAND_IN} (made here)", stand_in()
        print(
            f"{'*' * 88}\nNOT CIFAR-10: SYNTHETIC STAND-IN IMAGES. "
            "No accuracy below says anything about CIFAR-10.\n"
            f"Its files could not be read from {root / CIFAR10.base_folder}\n"
            f"or downloaded from {CIFAR10.url}:\n{type(error).__name__}: {error}\n"
            f"Put them there, or remove this cause. Then run again.\n{'*' * 88}"
        )
    else:
        CIFAR10.replaced, source = False, f"CIFAR-10 ({root})"
    finally:
        socket.setdefaulttimeout(timeout)
    print(
        f"{source}: {len(data.train_images):,} training and {len(data.test_images):,} test images"
    )
    return data


def stand_in():
    """Make ``Data`` a tenth as large as CIFAR-10's: a random colour per class, under noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(10, (6_000,), generator=generator)
    noise = torch.randint(128, (6_000, 3, 32, 32), generator=generator, dtype=torch.uint8)
    images = noise + noise[:10, :, :1, :1][labels]
    return Data(images[:5_000], labels[:5_000], images[5_000:], labels[5_000:])


def load_picture(path):
    """Read a picture's central square as the network's input, uint8 (1, 3, 32, 32).

    As a viewer shows it: upright, transparent pixels on white, its colour profile applied.
    ValueError: no picture that Pillow can read, or a grey one of more than 8 bits per channel.
    """
    with open(path, "rb") as file:
        try:
            picture = _central_square(file)
        except Exception as error:  # Pillow raises many kinds
            raise ValueError(
                f"{error}; save {path} as JPEG or PNG with 8 bits per channel"
            ) from error
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def _central_square(file):
    """32 x 32 pixels, RGB."""
    with mock.patch.object(Image, "MAX_IMAGE_PIXELS", 256_000_000):  # phones have 200 megapixels
        picture = Image.open(file)
    if picture.mode[0] in "IF":  # ``convert`` would clip them
        raise ValueError(f"{file.name} has more than 8 bits per channel")
    picture.draft(None, (256, 256))  # a JPEG is decoded at a smaller scale: far less memory
    picture.getexif()  # is read, then taken off: exif_transpose would write it, which may fail
    picture.info.pop("exif", None)
    profile = picture.info.get("icc_profile")
    picture = ImageOps.exif_transpose(picture)
    picture = ImageOps.fit(picture.convert("RGBA"), (32, 32), Image.Resampling.BILINEAR)
    white = Image.new("RGBA", (32, 32), "white")
    picture = Image.alpha_composite(white, picture).convert("RGB")
    if profile:
        with contextlib.suppress(ImageCms.PyCMSError):  # a damaged one, or not of RGB
            srgb = ImageCms.createProfile("sRGB")
            return ImageCms.profileToProfile(picture, io.BytesIO(profile), srgb)
    return picture


def random_crop(images, padding=4):
    """Shift each image by up to ``padding`` pixels; the border is filled by reflection.

    (B, C, H, W) to the same.
    """
    height, width = images.shape[2:]
    padded = F.pad(images, [padding] * 4, mode="reflect")
    down, right = torch.randint(2 * padding + 1, (2, len(images))).tolist()
    places = zip(padded, down, right)
    return torch.stack([image[:, y : y + height, x : x + width] for image, y, x in places])


def normalize(images):
    """uint8 (B, 3, H, W) to float32, per channel of mean 0 and standard deviation 1 over CIFAR-10.

    TypeError: not uint8.
    On a CPU the result is channels last, with which the network trains faster. On a GPU it is not:
    with PyTorch from before July 2026 some gradients would be wrong
    (https://github.com/pytorch/pytorch/issues/188344).
    """
    if images.dtype != torch.uint8:
        raise TypeError(f"got {images.dtype} images; normalize needs uint8 pixels from 0 to 255")
    mean, std = _statistics(images.device)
    memory_format = torch.channels_last if images.device.type == "cpu" else torch.contiguous_format
    return images.to(torch.float32, memory_format=memory_format).sub_(mean).div_(std)


@functools.cache  # copied to a GPU once: each copy would make it wait
def _statistics(device):
    return [255 * torch.tensor(values, device=device).view(3, 1, 1) for values in (MEAN, STD)]


class Batches:
    """Batches of images, uint8 (N, 3, 32, 32), and labels, int64 (N,), prepared on one device.

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
        draw = torch.randperm if self.shuffle else torch.arange
        order = draw(len(self.images), device=self.images.device)
        for batch in order.split(self.batch_size):
            images = self.images.index_select(0, batch)  # on a CPU much faster than images[batch]
            yield normalize(self.transform(images)), self.labels[batch]


# --- 2. Training ----------------------------------------------------------------------------------


def pick_device():
    """The GPU, if a convolution works on it; else the CPU. Says why a GPU is not used."""
    if torch.cuda.is_available():
        try:
            nn.Conv2d(3, 3, 3, device="cuda")(torch.ones(1, 3, 8, 8, device="cuda")).sum().item()
            return torch.device("cuda")
        except Exception as error:  # no kernels for this GPU, no memory left on it
            print(
                "The CPU is used: a small convolution fails on the GPU "
                f"({type(error).__name__}: {error})"
            )
    return torch.device("cpu")


def device_name(device):
    """The name of the GPU, or of the CPU with its number of threads, for a log."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    cpuinfo = Path("/proc/cpuinfo")  # Linux only
    text = cpuinfo.read_text("utf-8") if cpuinfo.exists() else ""
    name = re.search(r"model name\s*: (.*)", text)
    return f"{name[1] if name else 'CPU'}, {torch.get_num_threads()} threads"


def adam(model):
    """Adam with two groups of parameters: the blocks are the last, for a rate of their own."""
    blocks = set(model.blocks.parameters())
    others = [parameter for parameter in model.parameters() if parameter not in blocks]
    groups = [{"params": others}, {"params": model.blocks.parameters()}]
    optimizer = torch.optim.Adam(groups, fused=True)
    # an autocast of the caller would go on with the weights of the step before
    optimizer.register_step_post_hook(lambda *_: torch.clear_autocast_cache())
    return optimizer


def one_cycle(optimizer, epochs, steps_per_epoch, max_lr):
    """The one-cycle policy (Smith, https://arxiv.org/abs/1708.07120), linear both ways.

    Step it after each batch.

    From max_lr / 10 up to max_lr in the first fifth of the steps, then down to max_lr / 1000, as in
    the published solution, which also cycles beta1. ``max_lr``: a rate, or a list of one per group.
    ValueError: fewer than six steps.
    """
    steps = epochs * steps_per_epoch
    if steps < 6:
        raise ValueError(f"got {steps} steps in all; the policy needs six")
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr,
        steps,
        pct_start=0.2,
        anneal_strategy="linear",
        cycle_momentum=False,
        div_factor=10,
        final_div_factor=100,
    )


def _copy(model):
    """A copy of a network. Tensors that it keeps from an earlier call are copied without history.

    ``deepcopy`` alone refuses them.
    """
    with mock.patch.object(torch.Tensor, "__deepcopy__", lambda kept, _: kept.detach().clone()):
        return copy.deepcopy(model)


def find_lr(model, batches, max_lr, block_rate, steps=100):
    """LR range test (Smith, https://arxiv.org/abs/1506.01186) from 1e-4 to 1.

    It trains a copy of the model, with ``block_rate`` of the rate for the blocks, as in training.
    The figure marks ``max_lr``. ValueError: five steps or fewer, or a first loss of NaN.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tqdm's notice that its notebook bar is experimental
        from torch_lr_finder import LRFinder, TrainDataLoaderIter, lr_finder

    probe = _copy(model)
    optimizer = adam(probe)
    others, blocks = optimizer.param_groups
    optimizer.register_step_pre_hook(lambda *_: blocks.update(lr=block_rate * others["lr"]))
    finder = LRFinder(probe, optimizer, nn.CrossEntropyLoss())
    no_bar = mock.patch.object(lr_finder, "tqdm", iter)
    with no_bar, contextlib.redirect_stdout(io.StringIO()):
        finder.range_test(TrainDataLoaderIter(batches), start_lr=1e-4, end_lr=1.0, num_iter=steps)

    losses = finder.history["loss"]
    if len(losses) <= 5 or not math.isfinite(losses[0]):  # the plot leaves out the last five
        raise ValueError(f"the range test needs over five steps with finite losses, got {losses}")
    figure, axes = plt.subplots()
    finder.plot(skip_start=0, show_lr=max_lr, ax=axes, suggest_lr=False)
    axes.set(
        title=f"LR range test and max_lr = {max_lr}",
        xlabel="learning rate",
        ylabel="training loss (smoothed)",
    )
    return _save(figure, "lr_finder.png")


def train(model, device, batches, optimizer, scheduler, epoch):
    """Train for one epoch, with a bar in the format of the published log.

    Returns (mean loss, accuracy in %).

    Loss and accuracy are read at most five times per epoch: a reading in each step would make a GPU
    wait for Python. ``batches``: a ``Batches`` or a DataLoader. FloatingPointError: a loss was not
    finite.
    """
    model.train()
    losses, correct, seen = [], 0, 0
    every = math.ceil(len(batches) / 4)

    def results():
        mean = sum(torch.stack(losses).tolist()) / seen
        if not math.isfinite(mean):
            raise FloatingPointError(
                f"the loss is {mean} by epoch {epoch}, step {step}, "
                f"LR {scheduler.get_last_lr()[0]:.6g}: lower max_lr, or look for NaN in the images"
            )
        return mean, 100 * correct.item() / seen

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
                mean, percent = results()
                bar.set_description(
                    f"Batch_id={step - 1} Loss={mean:.5f} Accuracy={percent:.2f}%", refresh=False
                )
            scheduler.step()
    return results()


@contextlib.contextmanager
def eval_mode(model):
    """The model in eval mode and without gradients, until the end of the block."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.clear_autocast_cache()  # of weights without a gradient
        for module in training:
            module.training = True


def predict(model, device, batches):
    """Logits (N, classes) and labels (N,), in eval mode."""
    with eval_mode(model):
        pairs = [(model(images.to(device)), labels.to(device)) for images, labels in batches]
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


def fit(model, device, train_batches, test_batches, optimizer, scheduler, epochs):
    """Train for ``epochs`` and test after each, in the format of the published log.

    Yields a dict for each finished epoch, so that a stopped training keeps them: epoch, lr (of its
    first step), train_loss, train_accuracy, test_loss, test_accuracy, seconds. Nothing is trained
    before the first is asked for. ValueError: a scheduler that was used, or of other steps.
    """
    if scheduler.last_epoch:
        raise ValueError("the scheduler has been used: make model, optimizer and scheduler again")
    steps = epochs * len(train_batches)
    if getattr(scheduler, "total_steps", steps) != steps:
        raise ValueError(f"the scheduler has {scheduler.total_steps} steps, the training {steps}")
    if on_stand_in():
        print(f"[{STAND_IN}]")
    for epoch in range(1, epochs + 1):
        started = time.perf_counter()
        row = {"epoch": epoch, "lr": scheduler.get_last_lr()[0]}
        print(f"EPOCH: {epoch} (LR: {row['lr']})")
        row["train_loss"], row["train_accuracy"] = train(
            model, device, train_batches, optimizer, scheduler, epoch
        )
        row["test_loss"], row["test_accuracy"] = test(model, device, test_batches)
        yield row | {"seconds": time.perf_counter() - started}


# --- 3. Measurements ------------------------------------------------------------------------------


def with_default_init(model):
    """A copy of the model whose fully connected layers have PyTorch's default initialisation."""
    model = _copy(model)
    for module in model.modules():
        if isinstance(module, nn.Linear):
            module.reset_parameters()
    return model


class Residual(Ultimus):
    """A block with a residual (He et al., https://arxiv.org/abs/1512.03385), beyond the task."""

    def attend(self, x):
        attention, out = super().attend(x)
        return attention, x + out  # (B, 8, 8), (B, 48)


Diagnosis = namedtuple("Diagnosis", "mixes sees directions")  # as in ``diagnose``


def _mixes(ask, images):
    """Whether the logits of the image in the middle change when all others are drawn again."""
    middle, others = len(images) // 2, 10 * torch.randn_like(images)
    others[middle] = images[middle]
    logits = ask(images)
    change = (ask(others) - logits)[middle].abs().max()
    return not change <= 1e-13 * logits.abs().max()


class _Maps(TorchFunctionMode):
    """Keeps the feature maps (N, C, H, W) that a network computes."""

    def __init__(self):
        super().__init__()
        self.kept = []

    @torch.enable_grad()
    def __torch_function__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if getattr(out, "requires_grad", False) and out.ndim == 4 and min(out.shape[2:]) > 1:
            self.kept.append(out)
        return out


def _pooled_map(ask, images):
    """The last feature map that is pooled, or None: see ``diagnose``."""
    with _Maps() as maps:
        logits = ask(images)
    gradients = torch.autograd.grad(
        logits.pow(3).sum(), maps.kept, retain_graph=True, materialize_grads=True
    )
    for kept, gradient in reversed([*zip(maps.kept, gradients)]):
        gradient = gradient.flatten(2) / gradient.abs().max()  # NaN if the map is not used
        same = gradient.isclose(gradient.median(2, keepdim=True)[0])  # (N, C, H W)
        if (~same).sum(2).max() <= 1:
            return kept


@torch.enable_grad()
def _sees(features, images):
    """On how many pixels, along one side, a place in the middle of a feature map depends."""
    seen = 0
    for shift in range(len(images)):
        leaf = images.roll(shift, 0).requires_grad_()
        maps = features(leaf.clone())
        if maps is None:
            return None
        place = maps[0, :, maps.shape[2] // 2, maps.shape[3] // 2]
        # the sum over the channels may be constant, and so may that of the squares
        (gradient,) = torch.autograd.grad(place.pow(3).sum(), leaf)
        seen = seen + gradient.abs().sum((0, 1))
    places = seen.nonzero()  # rows and columns
    return (places.amax(0) - places.amin(0) + 1).max().item()


def _directions(logits):
    """How many singular values of the logits (N, classes) are not nearly zero: see ``diagnose``."""
    rows = logits - logits.mean(1, keepdim=True)
    values = torch.linalg.svdvals(rows - rows.mean(0))
    return (values > 0.001 * rows.norm()).sum().item()


def diagnose(model, images, features=None):
    """Ask three questions of a network of images before its training; print and return the answers.

    The network is left as it is: a copy computes, in double precision on the CPU.

    Args:
        model: maps (N, C, H, W) to logits (N, classes).
        images: a few hundred normalised training images, (N, C, H, W).
        features: maps ``images`` to the last feature map, (N, C, H, W), as ``model.stem`` does,
            on their device. If it is not given, the map is searched for: the last in whose channels
            all places have the same gradient, because their mean follows, or all but one, because
            their maximum does. A branch whose weights start at zero counts only in such a map.

    Returns:
        ``Diagnosis``:
        mixes, whether in eval mode an image's logits change with its neighbours in the batch;
        sees, on how many pixels along one side a place of the last feature map depends (the image's
        side if the search finds no map, as in a ViT; a line says so). A GroupNorm, LayerNorm or
        squeeze-and-excitation lets it depend on all, though through a few numbers only;
        directions, in how many the logits of the images differ, at most the smaller number of
        classes and images, less one: the rank, once the mean of each image's logits, which the
        softmax does not see, and then the mean over the images are subtracted. Singular values
        above 0.001 of the norm before the last step count. BatchNorm uses the images' statistics.
        Few are known as rank collapse (Dong et al. 2021, https://arxiv.org/abs/2103.03404). But a
        last layer that starts at zero has none and may train well, and large biases in the last
        layer hide all.

    Raises:
        ValueError: fewer than two images; images or logits of another shape; logits that are NaN or
            change in each call.
        PyTorch's own error: the network casts to float32 itself, or needs one size of batch.
    """
    if images.ndim != 4 or len(images) < 2 or not images.is_floating_point():
        raise ValueError(
            f"got {images.dtype} of shape {tuple(images.shape)}; "
            "diagnose needs normalised float images (N, C, H, W), two or more"
        )

    def ask(images):
        logits = probe(images.clone())  # which the network may change in place
        shape = tuple(getattr(logits, "shape", ()))
        if shape[:-1] != images.shape[:1]:
            raise ValueError(f"the network's logits are {shape or type(logits)}, not (N, classes)")
        return logits

    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.allow_mutation_on_saved_tensors(),
        contextlib.ExitStack() as stack,
    ):
        if features:
            with eval_mode(model):
                sees = _sees(features, images[:4])
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.double)  # of tensors that the network makes, too
        probe, images = _copy(model).cpu().double().eval(), images.cpu().double()
        if (ask(images) - ask(images)).any():  # NaN, too
            raise ValueError("the network's logits are NaN or not the same in each call")
        mixes = _mixes(ask, images)
        for module in probe.modules():
            module.training = isinstance(module, nn.modules.batchnorm._BatchNorm)
        logits = ask(images)
        directions = _directions(logits)
        if not features:
            probe.eval()
            for parameter in probe.parameters():  # one that is zero would hide what it multiplies
                parameter += 0.1 * torch.randn_like(parameter)
            sees = _sees(functools.partial(_pooled_map, ask), images[:4])

    side, most = max(images.shape[2:]), min(logits.shape) - 1
    print(f"mixes: {mixes}" + "; no sum or product may run over the batch" * mixes)
    if sees is None:
        sees, advice = side, ", as no pooled map was found: give it as ``features``"
    else:
        advice = "; pools, strides or dilations let it see more" * (2 * sees < side)
    print(f"sees: {sees} of {side} pixels" + advice)
    advice = "; residuals or another initialisation let more through, unless the last layer is zero"
    advice *= 2 * directions < most
    print(f"directions: {directions} of {most}" + advice)
    return Diagnosis(mixes, sees, directions)


# --- 4. Plots -------------------------------------------------------------------------------------


def _save(figure, name):
    """Save a figure as images/``name``, marked if its data are the stand-in; return it for display.

    A notebook shows the file itself. Its title is the text for those who do not see it.
    """
    if on_stand_in():
        figure.text(0.5, 1.01, f"[{STAND_IN}]", ha="center", color="C3", weight="bold")
    path = output_folder("images") / name
    figure.savefig(path, bbox_inches="tight")
    title = figure.get_suptitle() or ". ".join(axes.get_title() for axes in figure.axes)
    # goes before what %matplotlib inline does
    figure._ipython_display_ = functools.partial(
        display.display, display.Image(filename=path, metadata={"alt": title})
    )
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


def plot_misclassified(images, labels, predicted):
    """The first 20 images, uint8 (N, 3, 32, 32), whose predicted class is not the actual one."""
    figure = plt.figure(figsize=(7, 7), layout="constrained")
    for number, index in enumerate((labels != predicted).nonzero()[:20, 0], start=1):
        title = f"actual: {CLASSES[labels[index]]}\npredicted: {CLASSES[predicted[index]]}"
        _show_image(figure.add_subplot(4, 5, number), images[index], title)
    figure.suptitle("Misclassified test images")
    return _save(figure, "misclassified_imgs.png")


def plot_confusion(labels, predicted):
    """Confusion matrix: how many images of each actual class got each predicted class."""
    rows, columns = F.one_hot(torch.stack([labels, predicted]).cpu(), 10)  # (N, 10) each
    counts = (rows.T @ columns).numpy()
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
    maps = []
    with eval_mode(model):
        x = model.features(normalize(images))
        for block in model.blocks:
            attention, x = block.attend(x)
            maps.append(attention.cpu())
    uniform = 8**-1.5  # each row has the sum 1/sqrt(8)
    figure, grid = plt.subplots(
        len(images),
        1 + len(maps),
        figsize=(7.5, 1.7 * len(images)),
        layout="constrained",
        squeeze=False,
    )
    for row, image, label, *ams in zip(grid, images, labels, *maps):
        _show_image(row[0], image, CLASSES[label])
        for number, (axes, am) in enumerate(zip(row[1:], ams), start=1):
            picture = axes.imshow(am.numpy(), cmap="RdBu_r", vmin=0, vmax=2 * uniform)
            axes.set(title=f"block {number}", xlabel="j (key)", ylabel="i (query)")
    if maps:
        figure.colorbar(
            picture, ax=grid, label=f"AM[i, j]; white: uniform, {uniform:.3f}", extend="max"
        )
    figure.suptitle("Attention maps of single images")
    return _save(figure, "attention_maps.png")
