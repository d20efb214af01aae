"""Fill the measured parts of README.md from what measured them.

    python experiments/readme.py

A part stands between <!-- NAME --> and <!-- /NAME -->. The training log and its
summary come from the notebook's outputs, the tables from the CSVs and the text
file beside this script. A test fails when README.md isn't what this would write.
"""

import json
import re
import statistics
from pathlib import Path

from ablation import CSV as ABLATION
from ablation import ORDER
from collapse import CSV as COLLAPSE
from collapse import JOBS
from harness import COLLAPSED, read
from tuning import CSV as TUNING
from tuning import SETTINGS

ROOT = Path(__file__).parents[1]

GITHUB = "https://github.com/"
PUBLISHED = GITHUB + "shreyash-99/EVA8/blob/801ee375bb1968de75a657ac3f1454028eb234fc/Session_9_Assignment/README.md"
STUCK = GITHUB + "peeyushsinghal/EVA8/blob/11979547e635eef02b51c00e6e2a30019425a755/S9-Assignment-Solution/README.md"
BEST_OTHER = GITHUB + "abhyuditjain/eva-8/blob/adf545ae7759c2450fa1496fe7769e0eebb0e3ea/session9/README.md"
UVA = "https://uvadlc-notebooks.readthedocs.io/en/latest/tutorial_notebooks/tutorial15/Vision_Transformer.html"
RESULTS = [  # as the others published them; the parameters of the first are counted from its model9.py
    "| solution | test accuracy (%) | parameters | epochs | time | source |",
    "| --- | --- | ---: | ---: | --- | --- |",
    "| published solution | 40.14 | 25,776 | 24 | 22 s an epoch, Colab GPU "
    f"| [shreyash-99/EVA8]({PUBLISHED}), its log |",
    f"| another, stuck at chance | 10.00 | 25,680 | 24 | 18 s an epoch | [peeyushsinghal/EVA8]({STUCK}) |",
    "| another | 41.10 | 25,978 | 24 | 4 s an epoch "
    f"| [ojhajayant/EVA8]({GITHUB}ojhajayant/EVA8/blob/main/session_9/README.md) |",
    "| the best other one found without residual connections | 62.25 | 26,064 | 24 | 16 s an epoch "
    f"| [abhyuditjain/eva-8]({BEST_OTHER}) |",
    "| with residual connections and an elementwise product in place of QᵀK | 64.43 | 25,882 | 24 | 13 s an epoch "
    f"| log of the author of [pytorch-cifar-for-EVA]({GITHUB}ajinkyakhadilkar/pytorch-cifar-for-EVA) |",
    f"| Vision Transformer of six layers | 75.59 | | 180 | up to an hour, Titan RTX | [UvA tutorial 15]({UVA}) |",
]


def outputs(notebook):
    """What the notebook's cells printed, one text for each cell that printed."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join(line for out in cell["outputs"] for line in out.get("text", [])) for cell in cells]


def accuracies(table, name):
    """Accuracies of a setting's runs in a CSV's rows, in the order of the seeds."""
    rows = [row for row in table if row["name"] == name]
    return [float(row["accuracy"]) for row in sorted(rows, key=lambda row: int(row["seed"]))]


def spread(values):
    """Mean and sample standard deviation, as far as there are runs enough."""
    mean = f"{statistics.mean(values):.2f}"
    return f"{mean} ± {statistics.stdev(values):.2f}" if len(values) > 1 else mean


def seeds_table(table):
    lines = ["| | seed 1 | 2 | 3 | 4 | 5 | mean ± standard deviation |", "| --- " + 6 * "| ---: " + "|"]
    for name, text in (("ours", "ours, four ULTIMUS blocks"), ("no blocks", "the same without the blocks")):
        values = accuracies(table, name)
        lines.append(f"| {text} | " + " | ".join(f"{v:.2f}" for v in values) + f" | **{spread(values)}** |")
    return "\n".join(lines)


def gap(table):
    ours, without = accuracies(table, "ours"), accuracies(table, "no blocks")
    error = (statistics.variance(ours) / len(ours) + statistics.variance(without) / len(without)) ** 0.5
    return (
        f"Four blocks end {statistics.mean(without) - statistics.mean(ours):.2f} points below none, "
        f"with a standard error of {error:.2f} over five seeds each."
    )


def tuning_table():
    lines = ["| change | validation accuracy of each run (%) | mean |", "| --- | --- | ---: |"]
    table = read(TUNING)
    for setting in SETTINGS:
        values = accuracies(table, setting.name)
        if values:
            name = "none" if setting.name == "ours" else setting.name
            lines.append(f"| {name} | {', '.join(f'{v:.2f}' for v in values)} | {statistics.mean(values):.2f} |")
    return "\n".join(lines)


def ablation_table(table):
    lines = [
        "| network and training | test accuracy (%) | training accuracy (%) | runs | directions left | parameters |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for setting in ORDER:
        rows = [row for row in table if row["name"] == setting.name]
        if rows:
            values = accuracies(table, setting.name)
            counts = [int(row["directions"]) for row in rows if row["directions"]]
            left = "–".join(str(count) for count in sorted({min(counts), max(counts)})) if counts else ""
            parameters = int(rows[0]["parameters"])
            training = f"{statistics.mean(float(row['train_accuracy']) for row in rows):.1f}"
            told = spread(values)
            if min(values) < COLLAPSED:  # a mean would tell nothing
                told, training = ", ".join(f"{value:.2f}" for value in values), ""
            lines.append(f"| {setting.name} | {told} | {training} | {len(values)} | {left} | {parameters:,} |")
    return "\n".join(lines)


def collapse_table():
    lines = ["| max_lr | seeds | collapsed | test accuracy of each (%) |", "| --- | ---: | ---: | --- |"]
    table = read(COLLAPSE)
    for setting in dict.fromkeys(setting for setting, _ in JOBS):
        values = accuracies(table, setting.name)
        if values:
            each = ", ".join(f"{value:.1f}" for value in values)
            dead = sum(value < COLLAPSED for value in values)
            lines.append(f"| {setting.max_lr:.4g} ({setting.name}) | {len(values)} | {dead} | {each} |")
    return "\n".join(lines)


def fill(text, notebook):
    """The README's text with every measured part renewed."""
    printed = outputs(notebook)
    log = next(text for text in printed if "EPOCH: 1 " in text).strip()
    machine = next(text for text in printed if text.startswith("torch ")).strip()
    source = next(text for text in printed if "training steps an epoch" in text)
    data = re.search(r"^(CIFAR-10|synthetic stand-in) ", source, re.MULTILINE)[1]
    last = next(text for text in printed if text.startswith("test accuracy")).strip()
    minutes = 24 * float(re.search(r"([\d.]+) s an epoch", last)[1]) / 60
    accuracy, training = re.findall(r"accuracy ([\d.]+) %", last)
    table = read(ABLATION)
    mean = spread(accuracies(table, "ours"))
    ours = (
        f"| **this repository** | **{mean}** (n = 5) | 25,978 | 24 "
        f"| {minutes:.1f} min in all, {machine.split(' on ')[1]} | [ablation.csv](experiments/ablation.csv) |"
    )
    parts = {
        "headline": f"**{mean} % on CIFAR-10's test set** (mean ± standard deviation of five "
        f"seeds), {minutes:.1f} minutes a training on {machine.split(' on ')[1]}.",
        "results": "\n".join([*RESULTS[:2], ours, *RESULTS[2:]]),
        "run": f"The notebook's run: {accuracy} % test and {training} % training accuracy on {data}, "
        f"{minutes:.1f} minutes ({machine}).",
        "seeds": seeds_table(table),
        "gap": gap(table),
        "tuning": tuning_table(),
        "ablation": ablation_table(table),
        "collapse": collapse_table(),
        "benchmark": (ROOT / "experiments" / "benchmark.txt").read_text().strip(),
        "log": f"```text\n{log}\n```",
    }
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{part}\n{end}{after}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    notebook = json.loads((ROOT / "Session-9_Assignment.ipynb").read_text())
    readme.write_text(fill(readme.read_text(), notebook))
