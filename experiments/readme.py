"""Fill the measured parts of README.md from what measured them.

    python -m experiments.readme

A part stands between <!-- NAME --> and <!-- /NAME -->. The training log and its
summary come from the notebook's outputs, the tables from the CSVs and the text
file beside this script. A test fails when README.md isn't what this would write.
"""

import json
import re
import statistics
from pathlib import Path

import utils
from experiments.ablation import CSV as ABLATION
from experiments.ablation import ORDER, PUBLISHED
from experiments.collapse import CSV as COLLAPSE
from experiments.collapse import JOBS
from experiments.harness import COLLAPSED, EPOCHS, read
from experiments.published import CSV as FIELD
from experiments.tuning import CSV as TUNING
from experiments.tuning import SETTINGS

ROOT = Path(__file__).parents[1]
OTHERS = {  # rows of published.csv that the README shows
    "shreyash-99/EVA8": "the published one",
    "raguram/EVA8P1": "stuck at chance, attention per image as ours",
    "MPGarg/Assignment-9": "residuals, one map for K, Q, V of all blocks",
    "abhyuditjain/eva-8": "the best without residuals",
    "ajinkyakhadilkar/EVA-8": "the best: residuals, elementwise product",
}
UVA = (
    "https://github.com/phlippe/uvadlc_notebooks/blob/0da8037c7abc32f478ff6142acceb72dbcf088ee/"
    "docs/tutorial_notebooks/tutorial15/Vision_Transformer.ipynb"
)


def table(header, rows):
    """A Markdown table; a column whose name ends in a colon is aligned to the right."""
    rule = ["---:" if name.endswith(":") else "---" for name in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ([name.rstrip(":") for name in header], rule, *rows))


def outputs(notebook):
    """What the notebook's cells printed, one text for each cell that printed."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return ["".join(line for out in cell["outputs"] for line in out.get("text", [])) for cell in cells]


def values(rows, name, column="accuracy"):
    """A column of a setting's runs in a CSV's rows, in the order of the seeds."""
    rows = [row for row in rows if row["name"] == name]
    return [float(row[column]) for row in sorted(rows, key=lambda row: int(row["seed"]))]


def listed(numbers, digits=2):
    return ", ".join(f"{number:.{digits}f}" for number in numbers)


def spread(numbers):
    """Mean and sample standard deviation, or, of few or collapsed runs, each of them."""
    if len(numbers) < 3 or min(numbers) < COLLAPSED or statistics.stdev(numbers) > 3:
        return listed(numbers)
    return f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}"


def seeds_table(rows):
    lines = []
    for name, text in (("ours", "ours"), ("no blocks", "the same without the blocks")):
        plain, mirrored = values(rows, name), values(rows, name, "mirrored")
        lines.append([text, listed(plain), f"**{spread(plain)}**", spread(mirrored)])
    return table(["", "seeds 1 to 5", "mean ± standard deviation:", "mirrored:"], lines)


def gap(rows, one, other, column="accuracy"):
    """By how much one setting's runs are above another's: difference of the means and its standard error."""
    one, other = values(rows, one, column), values(rows, other, column)
    error = (statistics.variance(one) / len(one) + statistics.variance(other) / len(other)) ** 0.5
    return f"{statistics.mean(one) - statistics.mean(other):+.2f} ± {error:.2f}".replace("-", "−")


def ablation_table(rows, field):
    log = field["shreyash-99/EVA8"]["accuracy"]
    labels = {"ours": "**ours** (+ crop and flip)", PUBLISHED.name: f"{PUBLISHED.name} (its own log: {log})"}
    lines = []
    for setting in ORDER:
        own = [row for row in rows if row["name"] == setting.name]
        if own:
            accuracies = values(rows, setting.name)
            counts = sorted({int(row["directions"]) for row in own if row["directions"]})
            left = f"{counts[0]}–{counts[-1]}" if len(counts) > 1 else "".join(map(str, counts))
            training = values(own, setting.name, "train_accuracy")
            training = listed(training, 1) if min(accuracies) < COLLAPSED else f"{statistics.mean(training):.1f}"
            name = labels.get(setting.name, setting.name)
            lines.append([name, spread(accuracies), training, str(len(own)), left])
    return table(["network and training", "test accuracy (%):", "training:", "runs:", "directions left:"], lines)


def collapse_table():
    rows, lines = read(COLLAPSE), []
    for setting in dict.fromkeys(setting for setting, _ in JOBS):
        accuracies = values(rows, setting.name)
        if accuracies:
            counts = values(rows, setting.name, "directions")
            dead = sum(value < COLLAPSED for value in accuracies)
            left = f"{min(counts):.0f}" if min(counts) == max(counts) else f"{min(counts):.0f}–{max(counts):.0f}"
            name = f"{setting.max_lr:.4g} ({setting.name})"
            lines.append([name, f"{dead} of {len(accuracies)}", left, listed(accuracies, 1)])
    return table(["max_lr", "collapsed:", "directions left:", "validation accuracy of each (%)"], lines)


def tuning_table():
    rows, lines = read(TUNING), []
    for setting in SETTINGS:
        plain, mirrored = values(rows, setting.name), values(rows, setting.name, "mirrored")
        if plain:
            lines.append(
                [setting.name, listed(plain), f"{statistics.mean(plain):.2f}", f"{statistics.mean(mirrored):.2f}"]
            )
    return table(["change", "validation accuracy of seeds 1, 2, ... (%)", "mean:", "mirrored:"], lines)


def others_table(field, mean, parameters, seconds):
    lines = [["**this repository**", f"**{mean}**", f"{parameters:,.0f}", str(EPOCHS), seconds]]
    for repository, text in OTHERS.items():
        row = field[repository]
        source = f"https://github.com/{repository}/blob/{row['commit']}/{row['source'].replace(' ', '%20')}"
        name = f"[{repository.split('/')[0]}]({source}): {text}"
        lines.append([name, row["accuracy"], f"{int(row['parameters']):,}", row["epochs"], row["seconds"]])
    lines.append([f"[UvA tutorial 15]({UVA}): a Vision Transformer", "75.59", "3,195,146", "180", "< 20"])
    return table(["solution", "test accuracy (%):", "parameters:", "epochs:", "s an epoch:"], lines)


def fill(text, notebook):
    """The README's text with every measured part renewed.

    Raises:
        ValueError: the notebook's training isn't whole or was on the stand-in, or a part's marks
            don't stand in the text.
    """
    printed = outputs(notebook)
    if sum(text.count("Test set: ") for text in printed if "EPOCH: 1 " in text) != EPOCHS:
        raise ValueError(f"the notebook's log doesn't have {EPOCHS} epochs: run all of its cells first")

    def cell(words):
        return next(text for text in printed if words in text)

    if utils.STAND_IN in cell("training steps an epoch"):
        raise ValueError(f"the notebook ran on the {utils.STAND_IN}: get CIFAR-10 (CIFAR10_ROOT) and run it again")

    machine = cell("torch ").strip()
    last = cell("test accuracy")
    minutes = EPOCHS * float(re.search(r"([\d.]+) s an epoch", last)[1]) / 60
    accuracy, mirrored, training = re.findall(r"([\d.]+) %", last)[:3]
    r2, same, alone = re.search(
        r"([\d.]+) of the logits.*?([\d.]+) %.*?([\d.]+) %", cell("of the logits"), re.DOTALL
    ).groups()
    benchmark = (ROOT / "experiments" / "benchmark.txt").read_text(encoding="utf-8").strip()
    device = re.search(r"^torch \S+, (.*);", benchmark)[1]
    seconds = re.search(r"b ours \| ([\d.]+)", benchmark)[1]
    rows, field = read(ABLATION), {row["repository"]: row for row in read(FIELD)}
    blocks = [gap(rows, "ours", "no blocks", column) for column in ("accuracy", "mirrored", "train_accuracy")]
    mean = spread(values(rows, "ours"))
    parts = {
        "headline": f"**{mean} % on CIFAR-10's test set** (mean ± standard deviation of five seeds), "
        f"{spread(values(rows, 'ours', 'mirrored'))} % with each test image and its mirror image averaged.",
        "blocks": f"Five seeds with four blocks against five without any: {blocks[0]} points (difference ± "
        f"standard error), mirrored {blocks[1]}, on the training images {blocks[2]}. "
        f"The best linear map from X to a trained network's logits explains {r2} of their variance, names the same "
        f"class for {same} % of the test images, and alone gets {alone} % of them right.",
        "run": f"The notebook's run: {accuracy} % test ({mirrored} % mirrored) and {training} % training accuracy "
        f"on CIFAR-10, {minutes:.1f} minutes ({machine}).",
        "seeds": seeds_table(rows),
        "others": others_table(field, mean, values(rows, "ours", "parameters")[0], f"{seconds} ({device})"),
        "tuning": tuning_table(),
        "ablation": ablation_table(rows, field),
        "collapse": collapse_table(),
        "benchmark": benchmark,
        "log": f"```text\n{cell('EPOCH: 1 ').strip()}\n```",
    }
    for name, part in parts.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if (text.count(start), text.count(end)) != (1, 1):
            raise ValueError(f"README.md wants one {start} and one {end}: put them back")
        before, _, rest = text.partition(start)
        _, _, after = rest.partition(end)
        text = f"{before}{start}\n{part}\n{end}{after}"
    return text


if __name__ == "__main__":
    readme = ROOT / "README.md"
    notebook = json.loads((ROOT / "Session-9_Assignment.ipynb").read_text(encoding="utf-8"))
    filled = fill(readme.read_text(encoding="utf-8"), notebook)
    with utils.replacing(readme) as new:
        new.write_text(filled, encoding="utf-8")
