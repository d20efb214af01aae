"""Stability: at which learning rates does the training collapse? The test set is not used.

    python -m experiments.collapse

1. Several learning rates of the network and of the blocks, several seeds each, eight epochs, measured on the validation
   images. Into collapse.csv.
2. One run that collapses again, with a look at the blocks every 25 steps. Into collapse_trace.csv, images/collapse.png.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import utils
from experiments.ablation import IMAGES, OURS
from experiments.harness import append, prepare, quiet, read, run_all

CSV, TRACE = (Path(__file__).with_name(name) for name in ("collapse.csv", "collapse_trace.csv"))
STOP, EVERY = 8, 25  # epochs; steps between two looks
RATES = [replace(OURS, name=f"{multiple} x max_lr", max_lr=multiple * OURS.max_lr) for multiple in (1, 3, 4.5, 6)]
FULL_RATE = replace(OURS, name="3 x max_lr, the blocks at the full rate", max_lr=3 * OURS.max_lr, block_rate=1.0)
FIFTH = replace(FULL_RATE, name="3 x max_lr, the blocks at a fifth of it", block_rate=0.2)
SEEDS = {RATES[0]: 10}  # how many seeds a setting has, if not three
JOBS = [(s, seed) for s in [*RATES, FIFTH, FULL_RATE] for seed in range(1, SEEDS.get(s, 3) + 1)]
WATCHED = FULL_RATE, 1


def trace(setting, seed):
    """Train again and look at the blocks every 25 steps: a dict a look.

    It has the epoch, the training loss, and for each block the spread of Z over 256 images (standard deviation)
    and the saturation of AM (mean of the largest share in a row: 1/8 is uniform, 1 is one-hot).
    """
    (model, device, batches, *rest), held_out = prepare(setting, seed, validation=True)
    sample = utils.normalize(held_out.images[:256])
    rows = []
    for epoch in range(1, STOP + 1):
        iterator = iter(batches)
        while part := list(itertools.islice(iterator, EVERY)):
            with quiet():
                loss, _ = utils.train(model, device, part, *rest, epoch)
            row = {"epoch": round(rest[-1].last_epoch / len(batches), 3), "loss": round(loss, 4)}
            for number, (block, x) in enumerate(zip(model.blocks, utils.block_outputs(model, sample)), start=1):
                with torch.no_grad():
                    attention, z = block.attend(x)
                row[f"spread {number}"] = f"{z.std(0).mean():.3g}"
                row[f"saturation {number}"] = f"{8**0.5 * attention.amax(2).mean():.3g}"
            rows.append(row)
    return rows


def draw(images=IMAGES):
    """Loss, spread of Z and saturation of AM over the epochs, from collapse_trace.csv."""
    rows = read(TRACE)
    epochs = [float(row["epoch"]) for row in rows]
    figure, panels = plt.subplots(1, 3, figsize=(8, 3.4), layout="constrained")
    panels[0].semilogy(epochs, [float(row["loss"]) for row in rows])
    for number in range(1, 5):
        panels[1].semilogy(epochs, [float(row[f"spread {number}"]) for row in rows], label=f"block {number}")
        panels[2].plot(epochs, [float(row[f"saturation {number}"]) for row in rows], label=f"block {number}")
    panels[2].axhline(1 / 8, color="C7", linestyle=":", label="uniform")
    panels[0].set(title="Training loss", xlabel="epoch", ylabel="loss")
    panels[1].set(title="Spread of Z", xlabel="epoch", ylabel="standard deviation")
    panels[2].set(title="Saturation of AM", xlabel="epoch", ylabel="mean of the largest share", ylim=(0, 1))
    figure.legend(*panels[2].get_legend_handles_labels(), loc="outside lower center", ncols=5)
    figure.suptitle(f"{WATCHED[0].name} ({WATCHED[0].max_lr:g}), seed {WATCHED[1]}")
    figure.savefig(images / "collapse.png")
    plt.close(figure)


if __name__ == "__main__":
    run_all(CSV, JOBS, validation=True, stop=STOP)
    if not TRACE.exists():
        torch.set_num_threads(1)
        append(TRACE, trace(*WATCHED))
    draw()
