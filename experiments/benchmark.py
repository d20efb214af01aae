"""Where the time of an epoch goes: the usual pipeline, ours, and the network's own arithmetic.

    python -m experiments.benchmark [--device cpu|cuda]

Trains the same network for one epoch in three ways, in turn, seven times over:

    a  usual   torchvision's transforms on each image, a DataLoader with two workers,
               the bar updated with .item() in every step
    b  ours    ``utils.Batches`` and ``utils.train``
    c  floor   forward, backward and Adam on one batch that is already on the device

and prints the medians, of the times and of each repetition's ratios. Last, three epochs of
the published system (its network, augmentation and batches of 512) in the loop of ours.
"""

import argparse
import gc
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from tqdm import tqdm

import utils
from experiments.ablation import OURS, PUBLISHED
from experiments.harness import build, published_augmentation, quiet, real_cifar10
from model9 import UltimusNet

REPETITIONS, BATCH_SIZE = 7, OURS.batch_size


class PerImage(Dataset):
    """uint8 images (N, 3, 32, 32) with torchvision's transforms on each, as torchvision's CIFAR10 has it."""

    def __init__(self, images, labels, transform):
        self.images, self.labels, self.transform = images.permute(0, 2, 3, 1).numpy(), labels.tolist(), transform

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


def usual(model, device, optimizer, scheduler, loader):
    """The training loop of the course, as most solutions have it."""
    model.train()
    correct = seen = 0
    bar = tqdm(loader, file=sys.stdout)
    for step, (images, labels) in enumerate(bar):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        correct += logits.argmax(1).eq(labels).sum().item()
        seen += len(labels)
        bar.set_description(f"Batch_id={step} Loss={loss.item():.5f} Accuracy={100 * correct / seen:.2f}%")


def floor(model, optimizer, images, labels, steps):
    """An epoch's steps of nothing but arithmetic."""
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


def seconds(epoch, device):
    """How long one call takes, from a machine at rest, the device's queue emptied before and after."""
    gc.collect()
    time.sleep(1)  # for the workers of the way before to be gone
    if device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    with quiet():
        epoch()
        if device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default=utils.pick_device().type)
    device = torch.device(parser.parse_args().device)

    data = real_cifar10()
    model = UltimusNet().to(device, memory_format=torch.channels_last)
    optimizer = utils.adam(model)
    batches = utils.Batches(data.train_images, data.train_labels, device, BATCH_SIZE, True, utils.augment)
    scheduler = utils.one_cycle(optimizer, epochs=4 * REPETITIONS, steps_per_epoch=len(batches))
    utils.keep_freed_memory()
    images, labels = next(iter(batches))

    per_image = transforms.Compose(
        [
            transforms.RandomCrop(32, padding=2, padding_mode="reflect"),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(utils.MEAN, utils.STD),
        ]
    )
    dataset = PerImage(data.train_images, data.train_labels, per_image)
    loader = DataLoader(dataset, BATCH_SIZE, shuffle=True, num_workers=2, pin_memory=device.type == "cuda")

    ways = {
        "a usual": lambda: usual(model, device, optimizer, scheduler, loader),
        "b ours": lambda: utils.train(model, device, batches, optimizer, scheduler, 1),
        "c floor": lambda: floor(model, optimizer, images, labels, len(batches)),
    }
    for way in ("b ours", "c floor"):  # warm-up
        seconds(ways[way], device)
    times = {way: [] for way in ways}
    order = list(ways)
    for _ in range(REPETITIONS):
        for way in order:
            times[way].append(seconds(ways[way], device))
        order.append(order.pop(0))  # each way in turn comes after each other
    a, b, c = times.values()
    ratios = [statistics.median(x / y for x, y in zip(*pair)) for pair in ((a, b), (b, c))]

    print(f"torch {torch.__version__}, {utils.device_name(device)}; medians of {REPETITIONS} epochs:\n")
    print("| way | seconds an epoch | images a second |\n| --- | ---: | ---: |")
    for way in ways:
        median = statistics.median(times[way])
        print(f"| {way} | {median:.2f} | {50_000 / median:,.0f} |")
    print(f"\na/b = {ratios[0]:.2f}, b/c = {ratios[1]:.3f} (each repetition's ratio, their median)\n")

    model = build(PUBLISHED).to(device, memory_format=torch.channels_last)
    optimizer = utils.adam(model)
    batches = utils.Batches(
        data.train_images, data.train_labels, device, PUBLISHED.batch_size, True, published_augmentation
    )
    scheduler = utils.one_cycle(optimizer, epochs=4)
    epochs = [seconds(lambda: utils.train(model, device, batches, optimizer, scheduler, 1), device) for _ in range(3)]
    print(f"the published system: {statistics.median(epochs):.1f} s an epoch")


if __name__ == "__main__":
    main()
