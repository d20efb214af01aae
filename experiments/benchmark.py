"""Where the time of an epoch goes, and what another training on the same cores costs.

    python -m experiments.benchmark [--device cuda]

Trains for one epoch in three ways, in turn, five times over: *a usual*, torchvision's transforms on
each image, a DataLoader with two workers and a bar that reads the loss in each step; *b ours*,
``utils.Batches`` and ``utils.train``; *c floor*, forward, backward and Adam on one batch. On a CPU,
it then trains ours alone and beside another. When all is measured, it is printed and written to
benchmark_cpu.txt or benchmark_cuda.txt.
"""

import argparse
import gc
import itertools
import os
import statistics
import subprocess
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
SPINS = {"300000": "libgomp's default", "10000": "ours"}


def usual(model, device, loader, optimizer, scheduler):
    """A plain loop, which reads the loss in each step."""
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
        bar.set_description(
            f"Batch_id={step} Loss={loss.item():.5f} Accuracy={100 * correct / seen:.2f}%"
        )


def floor(model, optimizer, images, labels, steps):
    """The arithmetic of an epoch's steps and nothing else."""
    model.train()
    for _ in range(steps):
        model.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()


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


def pace():
    """Steps per second of our training, over 100 steps."""
    (model, device, batches, *rest), _ = prepare(OURS, seed=1, device=torch.device("cpu"))
    part = list(itertools.islice(batches, 100))
    return len(part) / seconds(lambda: utils.train(model, device, part, *rest, 1), device)


def crowded(spins, trainings):
    """The mean ``pace`` of some trainings at once."""
    training = [sys.executable, "-c", "from experiments.benchmark import pace; print(pace())"]
    environment = os.environ | {"GOMP_SPINCOUNT": spins}
    running = [
        subprocess.Popen(training, env=environment, stdout=subprocess.PIPE)
        for _ in range(trainings)
    ]
    return statistics.mean(float(process.communicate()[0]) for process in running)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    device = torch.device(parser.parse_args().device)

    (model, _, batches, optimizer, scheduler), _ = prepare(OURS, seed=1, device=device)
    images, labels = next(iter(batches))
    crop = transforms.RandomCrop(32, padding=4, padding_mode="reflect")
    per_image = transforms.Compose(
        [crop, transforms.ToTensor(), transforms.Normalize(utils.MEAN, utils.STD)]
    )
    dataset = CIFAR10(os.environ.get("CIFAR10_ROOT") or "data", transform=per_image)
    loader = DataLoader(
        dataset, OURS.batch_size, shuffle=True, num_workers=2, pin_memory=device.type == "cuda"
    )
    ways = {
        "a usual": lambda: usual(model, device, loader, optimizer, scheduler),
        "b ours": lambda: utils.train(model, device, batches, optimizer, scheduler, 1),
        "c floor": lambda: floor(model, optimizer, images, labels, len(batches)),
    }
    for way in list(ways)[1:]:  # warm-up
        seconds(ways[way], device)
    repetitions = [[seconds(epoch, device) for epoch in ways.values()] for _ in range(REPETITIONS)]
    ratios = [statistics.median(times[i] / times[i + 1] for times in repetitions) for i in (0, 1)]

    machine = f"torch {torch.__version__}, {utils.device_name(device)}"
    lines = [f"{machine}; medians of {REPETITIONS} epochs:\n"]
    lines.append("| way | seconds per epoch | images per second |\n| --- | ---: | ---: |")
    for way, times in zip(ways, zip(*repetitions)):
        median = statistics.median(times)
        lines.append(f"| {way} | {median:.2f} | {50_000 / median:,.0f} |")
    lines.append(
        "\na/b = {:.2f}, b/c = {:.3f} (medians of the ratios in each repetition)\n".format(*ratios)
    )

    if device.type == "cpu":
        lines.append(
            "| steps per second, medians of 3 | alone | each of two |\n| --- | ---: | ---: |"
        )
        for spins, label in SPINS.items():
            alone, two = (
                statistics.median(crowded(spins, count) for _ in range(3)) for count in (1, 2)
            )
            lines.append(f"| GOMP_SPINCOUNT={spins}, {label} | {alone:.1f} | {two:.1f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    Path(__file__).with_name(f"benchmark_{device.type}.txt").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
