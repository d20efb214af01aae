"""Other solutions: where they end, what three questions say of them, and two of them mended.

    python -m experiments.published [FOLDER]

published.csv has a row for each solution: the accuracy of its own log and its training, with the
commit and the file that were read, and where its network stands. Given a FOLDER with clones,
FOLDER/OWNER/NAME for each ``model_repository``, this asks the questions of ``utils.diagnose`` of
all networks, untrained, and writes the answers into the table. Then it trains the two mended
networks (hours on a CPU; mended.csv). That runs other people's code: the definitions in the files
that the table names. Then, or without a FOLDER, it draws images/published.png.
"""

import ast
import contextlib
import functools
import json
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from torchvision import transforms

import utils
from experiments import ablation, untrained
from experiments.harness import EPOCHS, append, load, quiet, read, values, write

CSV = Path(__file__).with_name("published.csv")
IMAGES = Path(__file__).parents[1] / "images"
MENDED = Path(__file__).with_name("mended.csv")
SEEDS = range(1, 4)
DEFINITIONS = ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef
DOT = 2.2  # the width of a dot on the accuracy axis, so that stacked dots touch
NAMED = {"shreyash-99": "published solution", "abhyuditjain": "abhyuditjain"}
NAMED["ajinkyakhadilkar"] = "ajinkyakhadilkar"


def network(folder, row):
    """The untrained network of a row, from its commit in FOLDER/OWNER/NAME.

    Of the file or notebook, only definitions and constants run. An import that fails is skipped:
    the networks need none of those.
    """
    clone, path = Path(folder, row["model_repository"]), row["model_path"]
    show = ["git", "-C", clone, "show", f"{row['model_commit']}:{path}"]
    source = subprocess.check_output(show, text=True, encoding="utf-8")
    if path.endswith(".ipynb"):
        cells = [cell for cell in json.loads(source)["cells"] if cell["cell_type"] == "code"]
        lines = "\n".join("".join(cell["source"]) for cell in cells).splitlines()
        source = "\n".join(line for line in lines if not line.startswith(("!", "%")))
    names = {}
    for part in ast.parse(source).body:
        constant = isinstance(part, ast.Assign) and isinstance(part.value, ast.Constant)
        if constant or isinstance(part, DEFINITIONS):
            with contextlib.suppress(ImportError):
                exec(compile(ast.Module([part], []), path, "exec"), names)
    return eval(f"{row['class']}({row['arguments']})", names)


def ask(folder):
    """Write the answers of each network into its row: those of all seeds, where they differ."""
    images, rows = utils.normalize(load().train_images[:256]), read(CSV)
    for row in rows:
        answers = []
        for seed in SEEDS:
            torch.manual_seed(seed)
            with quiet():
                answers.append(utils.diagnose(network(folder, row), images))
        for name, found in zip(utils.Diagnosis._fields, zip(*answers)):
            row[name] = " ".join(map(str, sorted(set(found))))
        print(row["repository"], *answers[0], flush=True)
    write(CSV, rows)


def halve(module):
    """Mend what a place sees: a MaxPool2d(2) after a module."""
    module.register_forward_hook(lambda _, inputs, out: F.max_pool2d(out, 2))


def add_input(block):
    """Mend the directions: x + block(x)."""
    block.register_forward_hook(lambda _, inputs, out: inputs[0].view_as(out) + out)


def mend_ajinkyakhadilkar(net):
    """Two max-pools. Its own normalisation divides by other deviations than ours."""
    for part in (net.conv1, net.conv2):
        halve(part)
    ratio = torch.tensor(utils.STD) / torch.tensor([0.2023, 0.1994, 0.2010])
    net.register_forward_pre_hook(lambda _, inputs: inputs[0] * ratio.to(inputs[0])[:, None, None])


def mend_abhyuditjain(net):
    """Two max-pools and x + block(x)."""
    for number in (2, 6):  # ReLU
        halve(net.conv_block[number])
    for block in net.ultimus_blocks:
        add_input(block)


def each(*steps):
    """An augmentation of batches, of torchvision's for single images."""
    augment = transforms.Compose(steps)
    return lambda images: torch.stack([augment(image) for image in images])


GREY = [round(255 * mean * (1 + std)) for mean, std in zip(utils.MEAN, utils.STD)]
HOLE = transforms.RandomErasing(0.5, scale=(1 / 16, 1 / 16), ratio=(1, 1), value=GREY)  # 8 x 8
FLIP = transforms.RandomHorizontalFlip()
CROP = functools.partial(transforms.RandomCrop, 32, 4)

# Trained as their notebooks say, read at the commits of the table, and in main.py of
# ajinkyakhadilkar/pytorch-cifar-for-EVA at bd51135, and the utils and transforms of
# abhyuditjain/pytorch-models at 559ecfe
LINEAR = dict(anneal_strategy="linear", div_factor=100, final_div_factor=1000)
TRAININGS = {  # how to mend; batch size, weight decay, augmentation; the one-cycle policy
    "ajinkyakhadilkar/EVA-8": (
        mend_ajinkyakhadilkar,
        (128, 5e-4, each(CROP(), FLIP)),
        dict(max_lr=0.02, pct_start=0.2083),
    ),
    "abhyuditjain/eva-8": (
        mend_abhyuditjain,
        (512, 0.0, each(CROP(padding_mode="reflect"), FLIP, HOLE)),
        dict(max_lr=0.01, pct_start=5 / 24, **LINEAR),
    ),
}


def train(folder, row, seed):
    """Mend the network of a row, ask it and train it. A row of mended.csv."""
    mend, (batch_size, weight_decay, augment), policy = TRAININGS[row["repository"]]
    data, device = load(), utils.pick_device()
    torch.manual_seed(seed)
    net = network(folder, row)
    mend(net)
    with quiet():
        answers = utils.diagnose(net, utils.normalize(data.train_images[:256]))
    training, held_out = (
        utils.Batches(data.train_images, data.train_labels, device, batch_size, True, augment),
        utils.Batches(data.test_images, data.test_labels, device),
    )
    optimizer = torch.optim.Adam(net.to(device).parameters(), weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, total_steps=EPOCHS * len(training), **policy
    )
    with quiet():
        *_, last = utils.fit(net, device, training, held_out, optimizer, scheduler, EPOCHS)
    answers = answers._asdict() | {"accuracy": round(last["test_accuracy"], 2)}
    return {"repository": row["repository"], "seed": seed} | answers


def passes(row):
    """Which of the three questions have a good answer, with every seed."""
    fewest = int(row["directions"].split()[0])
    return row["mixes"] == "False", 2 * int(row["sees"].split()[0]) >= 32, 2 * fewest >= 9


def draw(images=IMAGES):
    """Each solution as a dot: its accuracy, and how many questions it passes; and ours."""
    rows = sorted(read(CSV), key=lambda row: -float(row["accuracy"]))
    ours = next(row for row in read(untrained.CSV) if row["name"] == "ours")
    mean = statistics.mean(values(read(ablation.CSV), "ours"))
    figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
    bottom, ticks = 0, []
    for count in range(4):
        ticks.append(bottom)
        dots = []  # (accuracy, height), of which each overlaps no earlier one
        for row in [row for row in rows if sum(passes(row)) == count]:
            x, owner = float(row["accuracy"]), row["repository"].split("/")[0]
            taken = {y for other, y in dots if abs(x - other) < DOT}
            dots.append((x, min(y for y in range(bottom, bottom + 30) if y not in taken)))
            if owner in NAMED:
                axes.annotate(NAMED[owner], dots[-1], (6, 9), textcoords="offset points", size=14)
        if dots:
            axes.plot(*zip(*dots), "o", color="C7", markersize=11)
        bottom = max([bottom, *(y for _, y in dots)]) + 3
    height = ticks[sum(passes(ours))]
    axes.plot(mean, height, "*", color="C0", markersize=26)
    axes.text(mean - 4, height, f"ours {mean:.2f}", ha="right", va="center", size=16, color="C0")
    axes.axvline(10, color="C7", linestyle=":", zorder=0)
    axes.text(11, ticks[3], "chance", color="C7", va="center", size=14)
    axes.set(xlim=(0, 95), ylim=(-1, bottom - 1))
    axes.set_yticks(ticks, ["none", "one", "two", "all three"], fontsize=15)
    axes.set_xlabel("test accuracy (%)", fontsize=15)
    axes.set_title("Good answers to the three questions", fontsize=16, loc="left")
    axes.tick_params(axis="x", labelsize=15)
    axes.spines[["top", "right"]].set_visible(False)
    # its comment has what it shows, so that a test sees whether it is stale
    shown = [text.get_text() for text in axes.texts]
    shown += [line.get_xydata().round(2).tolist() for line in axes.lines]
    figure.savefig(images / "published.png", metadata={"Comment": json.dumps(shown)})
    plt.close(figure)


if __name__ == "__main__":
    if sys.argv[1:]:
        ask(sys.argv[1])
        done = {(row["repository"], row["seed"]) for row in read(MENDED)}
        for seed in SEEDS:
            for row in read(CSV)[:2]:
                if (row["repository"], str(seed)) not in done:
                    append(MENDED, [train(sys.argv[1], row, seed)])
    draw()
