"""The public solutions of this assignment: where they end, and what three questions say of them.

    python -m experiments.published [FOLDER]

published.csv has a row for each solution: the accuracy of its own log, with the commit and the file
that were read, and where its network stands. Given a FOLDER with clones, FOLDER/OWNER/NAME for each
``model_repository``, this asks the questions of ``utils.diagnose`` of all networks, untrained, in
minutes, and writes the answers into the table. That runs other people's code: the definitions in
the files that the table names. Then, or without a FOLDER, it draws images/published.png.
"""

import ast
import contextlib
import json
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import torch

import utils
from experiments import ablation, untrained
from experiments.harness import load, quiet, read, values, write

CSV = Path(__file__).with_name("published.csv")
IMAGES = Path(__file__).parents[1] / "images"
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
    draw()
