"""Other solutions: where they end, what three questions say of them, and two of them fixed.

    python -m experiments.published [FOLDER]

published.csv has a row for each solution: the accuracy of its own log and its training, with the
commit and the file that were read, and where its network stands. Given a FOLDER with clones,
FOLDER/OWNER/NAME for each ``model_repository``, this asks the questions of ``utils.diagnose`` of
all networks, untrained, and writes the answers into the table. Then it trains the two fixed
networks (hours on a CPU; fixed.csv). That runs other people's code: the definitions in the files
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
FIXED = Path(__file__).with_name("fixed.csv")
SEEDS = range(1, 4)
DEFINITIONS = ast.Import, ast.ImportFrom, ast.ClassDef, ast.FunctionDef
DOT = 2.2  # the width of a dot on the accuracy axis, so that stacked dots touch
NAMED = {  # where a name stands, in points from its dot
    "shreyash-99/EVA8": (6, 8),
    "ajinkyakhadilkar/EVA-8": (-125, -5),
    "abhyuditjain/eva-8": (10, -5),
}
WAY = ablation.WORST, ablation.APART, ablation.WHOLE, ablation.INITIALISED, ablation.OURS


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
    """Fix what a place sees: a MaxPool2d(2) after a module."""
    module.register_forward_hook(lambda _, inputs, out: F.max_pool2d(out, 2))


def add_input(block):
    """Fix the directions: x + block(x)."""
    block.register_forward_hook(lambda _, inputs, out: inputs[0].view_as(out) + out)


def fix_ajinkyakhadilkar(net):
    """Two max-pools. Its own normalisation divides by other standard deviations than ours."""
    for part in (net.conv1, net.conv2):
        halve(part)
    ratio = torch.tensor(utils.STD) / torch.tensor([0.2023, 0.1994, 0.2010])
    net.register_forward_pre_hook(lambda _, inputs: inputs[0] * ratio.to(inputs[0])[:, None, None])


def fix_abhyuditjain(net):
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

# Trained as their notebooks say, read at the commits of the table, in main.py and utils.py of
# ajinkyakhadilkar/pytorch-cifar-for-EVA at bd51135, and in the utils and transforms of
# abhyuditjain/pytorch-models at 559ecfe
LINEAR = dict(anneal_strategy="linear", div_factor=100, final_div_factor=1000)
TRAININGS = {  # how to fix; batch size, weight decay, augmentation; the one-cycle policy
    "ajinkyakhadilkar/EVA-8": (
        fix_ajinkyakhadilkar,
        (128, 5e-4, each(CROP(), FLIP)),
        dict(max_lr=0.02, pct_start=0.2083),
    ),
    "abhyuditjain/eva-8": (
        fix_abhyuditjain,
        (512, 0.0, each(CROP(padding_mode="reflect"), FLIP, HOLE)),
        dict(max_lr=0.01, pct_start=5 / 24, **LINEAR),
    ),
}


def train(folder, row, seed):
    """Fix the network of a row, ask it and train it. A row of fixed.csv."""
    fix, (batch_size, weight_decay, augment), policy = TRAININGS[row["repository"]]
    data, device = load(), utils.pick_device()
    torch.manual_seed(seed)
    net = network(folder, row)
    fix(net)
    with quiet():
        answers = utils.diagnose(net, utils.normalize(data.train_images[:256]))
    training = utils.Batches(
        data.train_images, data.train_labels, device, batch_size, True, augment
    )
    held_out = utils.Batches(data.test_images, data.test_labels, device)
    optimizer = torch.optim.Adam(net.to(device).parameters(), weight_decay=weight_decay)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, total_steps=EPOCHS * len(training), **policy
    )
    with quiet():
        *_, last = utils.fit(net, device, training, held_out, optimizer, scheduler, EPOCHS)
    accuracy = round(last["test_accuracy"], 2)
    return dict(repository=row["repository"], seed=seed, **answers._asdict(), accuracy=accuracy)


def passes(row):
    """Which of the three questions have a good answer, with every seed."""
    fewest = int(row["directions"].split()[0])
    return row["mixes"] == "False", 2 * int(row["sees"].split()[0]) >= 32, 2 * fewest >= 9


def height(row):
    """Where a network stands in the figure, by the number of its good answers."""
    return (0, 11, 17, 21)[sum(passes(row))]


@plt.rc_context({"font.size": 13})
def draw(images=IMAGES):
    """Accuracies by the number of good answers: each solution, two of them fixed, our way."""
    figure, axes = plt.subplots(figsize=(8, 5.5), layout="constrained")
    dots, stacks = {}, []
    for row in sorted(read(CSV), key=lambda row: -float(row["accuracy"])):
        x, bottom = float(row["accuracy"]), height(row)
        stacks.append((x, bottom))
        above = sum(abs(x - other) < DOT and bottom == below for other, below in stacks)
        dots[row["repository"]] = x, bottom + above
    axes.plot(*zip(*dots.values()), "o", color="C7", markersize=11, label="public solutions")
    for name, place in NAMED.items():
        axes.annotate(name.split("/")[0], dots[name], place, textcoords="offset points")
    for name, label in zip(TRAININGS, ["two of them, fixed", None]):
        runs = [row for row in read(FIXED) if row["repository"] == name]
        mean = statistics.mean(float(row["accuracy"]) for row in runs)
        line = dots[name], (mean, height(runs[0]) + 1)
        axes.plot(*zip(*line), "o:", color="C7", markersize=11, markerfacecolor="none", label=label)
    answers, way = {row["name"]: row for row in read(untrained.CSV)}, []
    for setting in WAY:
        mean = statistics.mean(values(read(ablation.CSV), setting.name))
        way.append((mean, height(answers[setting.name])))
    label = "one question fixed after the other, then ours"
    axes.plot(*zip(*way), "o-", color="C0", markersize=9, markerfacecolor="white", label=label)
    axes.plot(*way[-1], "*", color="C0", markersize=24)
    axes.set(xlim=(0, 95), xlabel="test accuracy (%)", ylim=(-1, 24))
    axes.set_yticks([0, 11, 17, 21], ["none", "one", "two", "all three"])
    axes.set_title("Number of good answers (dots are stacked)", loc="left")
    axes.legend(loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    # its comment has what it shows, so that a test sees whether it is stale
    shown = [text.get_text() for text in [*axes.texts, *axes.legend_.texts]]
    shown += [line.get_xydata().round(2).tolist() for line in axes.lines]
    figure.savefig(images / "published.png", metadata={"Comment": json.dumps(shown)})
    plt.close(figure)
    return figure


if __name__ == "__main__":
    if sys.argv[1:]:
        ask(sys.argv[1])
        torch.set_num_threads(1)  # as in every training of a table
        done = {(row["repository"], row["seed"]) for row in read(FIXED)}
        for seed in SEEDS:
            for row in read(CSV)[:2]:
                if (row["repository"], str(seed)) not in done:
                    append(FIXED, [train(sys.argv[1], row, seed)])
    draw()
