"""From the published solution to ours, step by step: test accuracy after 24 epochs.

    python -m experiments.ablation

Trains what ablation.csv does not have yet. Draws images/curves.png.
"""

from dataclasses import replace
from pathlib import Path

import matplotlib.pyplot as plt

from experiments.harness import CHANCE, EPOCHS, Setting, curves, read, run_all

CSV = Path(__file__).with_name("ablation.csv")
IMAGES = Path(__file__).parents[1] / "images"

OURS = Setting("ours")
PUBLISHED = Setting("published solution rebuilt", "stride 1", "over the batch", init="default", details="published")
PUBLISHED = replace(PUBLISHED, mirror=False, batch_size=512, max_lr=0.005, block_rate=1.0, augment="published")
BIASES = replace(PUBLISHED, name="+ our biases, constant beta1", details="ours")
PLAIN = replace(BIASES, name="+ no augmentation", augment="none")
PER_IMAGE = replace(PLAIN, name="+ attention per image", head="ultimus")
POOLED = replace(PER_IMAGE, name="+ our pools, blurs and dilation", stem="blurs")
INITIALISED = replace(POOLED, name="+ our initialisation", init="projection")
FASTER = replace(INITIALISED, name="+ batch 128, max_lr 0.01", batch_size=128, max_lr=0.01)
CALMER = replace(FASTER, name="+ blocks at 0.1 x max_lr", block_rate=0.1)
FLIPPED = replace(CALMER, name="+ crop by 2 and flip", augment="crop by 2 and flip")
AVERAGED = replace(FLIPPED, name="+ average pools in place of the blurs", stem="ours")
MIRRORED = replace(AVERAGED, name="+ the mirror image", mirror=True)
LADDER = [PUBLISHED, BIASES, PLAIN, PER_IMAGE, POOLED, INITIALISED, FASTER, CALMER, FLIPPED]
LADDER += [AVERAGED, MIRRORED, OURS]
STALLED = replace(OURS, name="ours with PyTorch's initialisation", init="default")
RESIDUAL = replace(STALLED, name="residuals and PyTorch's initialisation", head="residual")
OURS_RESIDUAL = replace(OURS, name="residuals", head="residual")
BARE = replace(OURS, name="no blocks", blocks=0)
LINEAR = replace(BARE, name="linear 48 > 8 > 48", head="linear")
MLP = replace(BARE, name="MLP 48 > 64 > 48", head="MLP")
NARROW = replace(BARE, name="MLP 48 > 64 > 8 > 48", head="narrow MLP")
ONE = replace(OURS, name="one block", blocks=1)
TWO = replace(OURS, name="two blocks", blocks=2)
THREE = replace(OURS, name="three blocks", blocks=3)
OVER_I = replace(OURS, name="softmax over i", head="over i")
PLAIN_STEM = replace(PER_IMAGE, name="our initialisation, plain stem", init="projection")
COMPARED = OURS, LINEAR, OURS_RESIDUAL, RESIDUAL  # with no blocks, in README.md
ORDER = [*LADDER, BARE, ONE, TWO, THREE, OVER_I, LINEAR, NARROW, MLP, OURS_RESIDUAL, STALLED, RESIDUAL, PLAIN_STEM]
# How many runs a row has, if not three. A run on the plain stem is slow.
RUNS = {setting.name: 1 for setting in ORDER if setting.stem == "stride 1"} | {PUBLISHED.name: 3}
RUNS |= {setting.name: 5 for setting in (FLIPPED, STALLED, BARE)} | {OURS.name: 10}
JOBS = [(setting, seed) for seed in range(1, 11) for setting in ORDER[::-1] if seed <= RUNS.get(setting.name, 3)]


def draw(images=IMAGES):
    """The test accuracy after each epoch with two initialisations, a line for each run."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for colour, (name, label) in enumerate({OURS.name: "our initialisation", STALLED.name: "PyTorch's"}.items()):
        for number, run in enumerate(curves(read(CSV), name)):
            axes.plot(range(1, EPOCHS + 1), run, color=f"C{colour}", alpha=0.6, label="" if number else label)
    axes.axhline(CHANCE, color="C3", linestyle=":", label="chance")
    axes.set(title="The same network with two initialisations", xlabel="epoch", ylabel="test accuracy (%)", ylim=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(images / "curves.png")
    plt.close(figure)


if __name__ == "__main__":
    run_all(CSV, JOBS)
    draw()
