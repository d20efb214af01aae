"""Fill the measured parts of README.md and experiments/README.md from what measured them.

    python -m experiments.readme

A part stands between <!-- NAME --> and <!-- /NAME -->. The training log comes from the outputs of the notebook, the
tables from the CSVs and benchmark.txt. A test fails when a README is not what this script would write.
"""

import json
import re
import statistics
from pathlib import Path

import utils
from experiments import ablation, collapse, published, tuning
from experiments.harness import COLLAPSED, EPOCHS, read, values

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "Session-9_Assignment.ipynb"
READMES = ROOT / "README.md", ROOT / "experiments" / "README.md"
STEPS = {  # rows of the ablation that README.md shows: label
    ablation.PUBLISHED.name: "published solution rebuilt",
    "+ attention per image": "+ biases, constant beta1, no augmentation, attention per image",
    "+ our pools, blurs and dilation": "+ our pools, blurs and dilation",
    "+ our initialisation": "+ our initialisation",
    "ours": "**ours**: + batch 128, max_lr 0.01, blocks at a tenth of it, crop and flip",
    "no blocks": "ours without the blocks",
    "MLP 48 > 64 > 48, no blocks": "an MLP 48 > 64 > 48 (BatchNorm, ReLU) in their place",
    "MLP 48 > 64 > 8 > 48, no blocks": "an MLP 48 > 64 > 8 > 48, likewise",
    "ours with PyTorch's initialisation": "ours with PyTorch's initialisation",
}
GAPS = {  # rows of the ablation against no blocks: label
    "ours": "the four blocks",
    "MLP 48 > 64 > 48, no blocks": "the MLP",
    "MLP 48 > 64 > 8 > 48, no blocks": "the MLP through 8 numbers",
}
OTHERS = {  # rows of published.csv that README.md shows: label
    "shreyash-99/EVA8": "the published solution",
    "abhyuditjain/eva-8": "the best without residuals",
    "ajinkyakhadilkar/EVA-8": "the best; with residuals",
}
UVA = "https://github.com/phlippe/uvadlc_notebooks/blob/0da8037c7abc32f478ff6142acceb72dbcf088ee"
UVA += "/docs/tutorial_notebooks/tutorial15/Vision_Transformer.ipynb"


def table(header, rows):
    """A Markdown table; a column whose name ends in a colon is aligned to the right."""
    rule = ["---:" if name.endswith(":") else "---" for name in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ([name.rstrip(":") for name in header], rule, *rows))


def listed(numbers, digits=2):
    return ", ".join(f"{number:.{digits}f}" for number in numbers)


def spread(numbers):
    """Mean and sample standard deviation, or each of few or widely scattered runs."""
    if len(numbers) < 3 or statistics.stdev(numbers) > 3:
        return listed(numbers)
    return f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}"


def gap(rows, name, column):
    """A setting against no blocks: difference of the means and its standard error."""
    one, other = values(rows, name, column), values(rows, "no blocks", column)
    error = (statistics.variance(one) / len(one) + statistics.variance(other) / len(other)) ** 0.5
    return f"{statistics.mean(one) - statistics.mean(other):+.2f} ± {error:.2f}".replace("-", "−")


def between(numbers):
    low, high = f"{min(numbers):.0f}", f"{max(numbers):.0f}"
    return low if low == high else f"{low} to {high}"


def ladder(rows):
    lines = []
    for setting in ablation.ORDER:
        test, ranks = values(rows, setting.name), values(rows, setting.name, "effective_rank")
        training = f"{statistics.mean(values(rows, setting.name, 'train_accuracy')):.1f}"
        lines.append([setting.name, spread(test), training, str(len(test)), between(ranks) if ranks else ""])
    return table(["network and training", "test accuracy (%):", "training (%):", "runs:", "effective rank:"], lines)


def seeds(rows):
    lines = []
    for name in ("ours", "no blocks"):
        plain, mirrored = values(rows, name), values(rows, name, "mirrored")
        lines.append([name, listed(plain), spread(plain), spread(mirrored)])
    return table(["", "seeds 1 to 5", "mean ± standard deviation:", "mirrored:"], lines)


def stability():
    rows, lines = read(collapse.CSV), []
    for setting in dict.fromkeys(setting for setting, _ in collapse.JOBS):
        accuracies, ranks = values(rows, setting.name), values(rows, setting.name, "effective_rank")
        dead = f"{sum(value < COLLAPSED for value in accuracies)} of {len(accuracies)}"
        lines.append([f"{setting.max_lr:.4g} ({setting.name})", dead, between(ranks), listed(accuracies, 1)])
    return table(["max_lr", "collapsed:", "effective rank:", "validation accuracy of each (%)"], lines)


def trials(settings):
    rows, lines = read(tuning.CSV), []
    for setting in settings:
        plain, mirrored = values(rows, setting.name), values(rows, setting.name, "mirrored")
        lines.append([setting.name, listed(plain), *(f"{statistics.mean(runs):.2f}" for runs in (plain, mirrored))])
    return table(["change", "validation accuracy of seeds 1, 2, ... (%)", "mean:", "mirrored:"], lines)


def others(rows):
    field = {row["repository"]: row for row in read(published.CSV)}
    lines = [["**this repository**", f"**{spread(values(rows, 'ours'))}**", "25,978", str(EPOCHS)]]
    for repository, text in OTHERS.items():
        row = field[repository]
        source = f"https://github.com/{repository}/blob/{row['commit']}/{row['source'].replace(' ', '%20')}"
        name = f"[{repository.split('/')[0]}]({source}): {text}"
        lines.append([name, row["accuracy"], f"{int(row['parameters']):,}", row["epochs"]])
    lines.append([f"[UvA tutorial 15]({UVA}): a Vision Transformer", "75.59", "3,195,146", "180"])
    return table(["solution", "test accuracy (%):", "parameters:", "epochs:"], lines)


def parts(notebook):
    """The text of each measured part, by its name.

    Raises ValueError: the notebook's training is not whole, or it ran on the stand-in.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    texts = ["".join("".join(out.get("text", "")) for out in cell["outputs"]) for cell in cells]  # printed by each
    log = next((text for text in texts if "EPOCH: 1 " in text), "")
    if log.count("Test set: ") != EPOCHS or utils.STAND_IN in log:
        raise ValueError(f"the notebook has no log of {EPOCHS} epochs on CIFAR-10: run all of its cells first")
    machine = next(text for text in texts if text.startswith("torch ")).strip()
    end = next(text for text in texts if "linear map" in text)
    r2, linear, accuracy, mirrored, minutes = re.findall(r"-?\d+\.\d+", end)
    training = re.findall(r"Accuracy=([\d.]+)%", log)[-1]
    benchmark = (ROOT / "experiments" / "benchmark.txt").read_text(encoding="utf-8").strip()
    seconds, theirs = (float(re.search(p, benchmark)[1]) for p in (r"b ours \| ([\d.]+)", r"system: ([\d.]+) s"))
    rows = read(ablation.CSV)
    first, second, *_ = map(float, re.findall(r"\d+/10000 \(([\d.]+)%\)", log))
    steps = [[label, spread(values(rows, name)), str(len(values(rows, name)))] for name, label in STEPS.items()]
    gaps = [[label, gap(rows, n, "accuracy"), gap(rows, n, "train_accuracy")] for n, label in GAPS.items()]
    return {
        "headline": f"**{spread(values(rows, 'ours'))} % on CIFAR-10's test set** (mean ± standard deviation of five "
        f"seeds), {spread(values(rows, 'ours', 'mirrored'))} % when the prediction is averaged over each test image "
        "and its mirror image.",
        "steps": table(["network and training", "test accuracy (%):", "runs:"], steps),
        "blocks": table(["percentage points ± standard error against no blocks", "test:", "training:"], gaps),
        "linear": f"For the trained network of the notebook, the best linear map from X to the logits reproduces {r2} "
        f"of their variance. This map alone has {linear} % test accuracy.",
        "others": others(rows),
        "time": f"On two CPU cores the published system trains for {EPOCHS} epochs of {theirs:.0f} s, "
        f"{EPOCHS * theirs / 60:.0f} minutes. An epoch of ours takes {seconds:.0f} s, without the tests. After one "
        f"epoch ours has {first:.0f} %, more than the published solution's 40 %. After two it has {second:.0f} %, more "
        "than each of the 26.",
        "run": f"The run of the notebook, seed 1: {accuracy} % test accuracy ({mirrored} % with mirror images "
        f"averaged), {training} % training accuracy, {minutes} minutes ({machine}).",
        "log": f"```text\n{log.strip()}\n```",
        "ladder": ladder(rows),
        "seeds": seeds(rows),
        "collapse": stability(),
        "tuning": trials(tuning.SETTINGS),
        "next": trials(tuning.NEXT_SETTINGS),
        "benchmark": benchmark,
    }


def fill(text, texts):
    """A README's text with each measured part renewed."""
    marked = r"<!-- (\w+) -->\n.*?<!-- /\1 -->"
    return re.sub(marked, lambda m: f"<!-- {m[1]} -->\n{texts[m[1]]}\n<!-- /{m[1]} -->", text, flags=re.DOTALL)


def main():
    """Raises ValueError, before anything is written, as ``parts`` does."""
    texts = parts(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    for readme in READMES:
        readme.write_text(fill(readme.read_text(encoding="utf-8"), texts), encoding="utf-8")


if __name__ == "__main__":
    main()
