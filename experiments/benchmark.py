"""Where the time of an epoch goes.

    python -m experiments.benchmark [--device cuda]

Trains for one epoch in three ways, in turn, five times over: *usual*, torchvision's transforms on
each image, a DataLoader with two workers and a bar that reads the loss in each step; the same with
images that are channels last; *ours*, ``utils.Batches`` and ``utils.train``. When all is measured,
it is printed and written to benchmark_cpu.txt or benchmark_cuda.txt.
"""

import argparse
import gc
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import CIFAR10
from tqdm import tqdm

import utils
from experiments.ablation import OURS
from experiments.harness import prepare, quiet

REPETITIONS = 5


def usual(model, device, loader, optimizer, scheduler, memory_format):
    """A plain loop, which reads the loss in each step."""
    model.train()
    bar = tqdm(loader, file=sys.stdout)
    for images, labels in bar:
        images, labels = images.to(device, memory_format=memory_format), labels.to(device)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        scheduler.step()
        bar.set_description(f"Loss={loss.item():.5f}")


def seconds(epoch, device):
    """How long one call takes; a GPU's queue is emptied before and after."""
    gc.collect()
    time.sleep(1)  # until the workers of the way before have ended
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    started = time.perf_counter()
    with quiet():
        epoch()
        wait()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)

    (model, _, batches, optimizer, scheduler), _ = prepare(OURS, seed=1, device=device)
    crop = transforms.RandomCrop(32, padding=4, padding_mode="reflect")
    per_image = transforms.Compose(
        [crop, transforms.ToTensor(), transforms.Normalize(utils.MEAN, utils.STD)]
    )
    dataset = CIFAR10(os.environ.get("CIFAR10_ROOT") or "data", transform=per_image)
    loader = DataLoader(
        dataset, OURS.batch_size, shuffle=True, num_workers=2, pin_memory=device.type == "cuda"
    )
    training = model, device, loader, optimizer, scheduler
    ways = {
        "usual": lambda: usual(*training, torch.contiguous_format),
        "usual, channels last": lambda: usual(*training, torch.channels_last),
        "ours": lambda: utils.train(model, device, batches, optimizer, scheduler, 1),
    }
    seconds(ways["ours"], device)  # warm-up
    repetitions = [[seconds(epoch, device) for epoch in ways.values()] for _ in range(REPETITIONS)]

    machine = f"torch {torch.__version__}, {utils.device_name(device)}"
    lines = [f"{machine}; medians of {REPETITIONS} epochs:\n"]
    lines.append("| way | seconds per epoch | images per second |\n| --- | ---: | ---: |")
    for way, times in zip(ways, zip(*repetitions)):
        median = statistics.median(times)
        lines.append(f"| {way} | {median:.2f} | {50_000 / median:,.0f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    Path(__file__).with_name(f"benchmark_{device.type}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
