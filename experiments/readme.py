"""Fill the tables and the log of both READMEs and of the notebook's text from what measured them.

    python -m experiments.readme

A part stands between <!-- NAME --> and <!-- /NAME -->. The log and the run come from the outputs of
the notebook, the rest from the CSVs and benchmark_cpu.txt. A test fails when a page is not what
this script would write. The figure of the solutions is drawn anew.
"""

import re
import statistics
from pathlib import Path

import nbformat

import utils
from experiments import ablation, published, tuning, untrained
from experiments.harness import EPOCHS, read, values

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "Session-9_Assignment.ipynb"
READMES = ROOT / "README.md", ROOT / "experiments" / "README.md"
PUBLISHED = 7  # the row of published.csv, in which the best is the first
YES = {"True": "yes", "False": "no"}


def table(header, rows):
    """A Markdown table; a column whose name ends in a colon is aligned to the right."""
    rule = ["---:" if name.endswith(":") else "---" for name in header]
    lines = [name.rstrip(":") for name in header], rule, *rows
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def agree(runs):
    """Whether the runs are many enough, or near enough to one another, for a mean and ±."""
    return len(runs) > 4 or len(runs) > 2 and statistics.stdev(runs) < 3


def result(runs):
    """Mean and sample standard deviation, or the runs themselves."""
    if not agree(runs):
        return ", ".join(f"{run:.2f}" for run in runs)
    return f"{statistics.mean(runs):.2f} ± {statistics.stdev(runs):.2f}"


def difference(runs, others):
    """The difference of two means, and its standard error."""
    error = sum(statistics.variance(each) / len(each) for each in (runs, others)) ** 0.5
    return statistics.mean(runs) - statistics.mean(others), error


def step(runs, others):
    """The ``difference`` as text; nothing where runs do not agree."""
    if not agree(runs) or not agree(others):
        return ""
    return "{:+.2f} ± {:.2f}".format(*difference(runs, others)).replace("-", "−")


def answer(name, question):
    """What the untrained networks of one name answered: one value, or the lowest to the highest."""
    found = {row[question] for row in read(untrained.CSV) if row["name"] == name}
    found = sorted(found, key=lambda text: (len(text), text))
    text = found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"
    return YES.get(text, text)


def headline(rows, others):
    """The published solution, the best of the others, and ours."""
    theirs, best = (float(row["accuracy"]) for row in (others[PUBLISHED], others[0]))
    ours = values(rows, ablation.OURS.name)
    owner = others[0]["repository"].split("/")[0]
    lines = [["the published solution, shreyash-99: its log", f"{theirs:.2f}"]]
    lines.append([f"the best of {len(others)} public solutions, {owner}: its log", f"{best:.2f}"])
    lines.append([f"**this repository**, {len(ours)} seeds", f"**{result(ours)}**"])
    return table(["", "test accuracy (%):"], lines)


def questions(rows, others):
    """The three questions, their answers, and what a bad answer costs our network."""
    asked = [
        "1. Do the other images of a batch change an image's logits?",
        "2. How many of 32 x 32 pixels does one place of the last feature map see?",
        "3. In how many directions (nine at most) do the logits of the images differ?",
    ]
    good, theirs = ["no", "16 x 16 or more", "5 or more"], others[PUBLISHED]
    seen = "{0} x {0}".format
    answers = [YES[theirs["mixes"]], seen(theirs["sees"]), theirs["directions"]]
    bad = [str(passes.count(False)) for passes in zip(*map(published.passes, others))]
    ours = [answer(ablation.OURS.name, question) for question in utils.Diagnosis._fields]
    ours[1] = seen(ours[1])
    costs = []
    for pair in ablation.COSTS:
        costs.append(" → ".join(result(values(rows, each.name)) for each in pair))
    costs[0] += f"; one image alone: {result(values(rows, ablation.MIXING.name, 'one_by_one'))}"
    header = ["asked of the untrained network", "good answer", "published solution"]
    header += [f"bad answers of all {len(others)}", "ours", "test accuracy (%), good → bad answer"]
    return table(header, zip(asked, good, answers, bad, ours, costs))


def compare(rows):
    """Networks against the one without blocks, and in how many directions their logits differ."""
    bare, lines = values(rows, ablation.BARE.name), []
    for setting in ablation.VARIANTS:
        runs = values(rows, setting.name)
        against = "" if setting == ablation.BARE else step(runs, bare)
        directions = answer(setting.name, "directions")
        lines.append([setting.name, result(runs), str(len(runs)), against, directions])
    header = ["network", "test accuracy (%):", "runs:", "against *no blocks* (± standard error):"]
    return table([*header, "directions, untrained:"], lines)


def batches(rows):
    """The network with attention across the batch, asked in several kinds of batches."""
    columns = "accuracy", "in_batches_of_8", "one_by_one", "sorted_by_class"
    names = ["512", "8", "1", "512, sorted by class"]
    runs = [result(values(rows, ablation.MIXING.name, column)) for column in columns]
    return table(["images in a batch of the test", "test accuracy (%):"], list(zip(names, runs)))


def ladder(rows):
    lines, before = [], None
    for setting in ablation.LADDER:
        one, both = (values(rows, setting.name, column) for column in ("accuracy", "mirrored"))
        gain = step(one, before) if before else ""
        name, before = ablation.LABELS.get(setting, setting.name), one
        lines.append([name, result(one), gain, result(both), str(len(one))])
    header = [
        "network and training",
        "one view (%):",
        "step, one view:",
        "both views (%):",
        "runs:",
    ]
    return table(header, lines)


def asked(names):
    """All answers of networks of ours before their training."""
    fields = utils.Diagnosis._fields
    return table(
        ["network", *fields], [[name, *(answer(name, f) for f in fields)] for name in names]
    )


def tuning_table(rows):
    lines = []
    for setting in tuning.SETTINGS:
        runs = values(rows, setting.name, "mirrored")
        every = ", ".join(f"{run:.2f}" for run in runs)
        lines.append([setting.name, every, f"{statistics.mean(runs):.2f}"])
    return table(
        ["change", "validation accuracy, both views, of seeds 1, 2, ... (%)", "mean:"], lines
    )


def parts(notebook):
    """The text of each measured part, by its name.

    Raises ValueError: the notebook's training is not whole, or it ran on the stand-in.
    """
    texts = []  # printed by each cell
    for cell in notebook["cells"]:
        texts.append("".join("".join(out.get("text", "")) for out in cell.get("outputs", [])))
    log = next((text for text in texts if "EPOCH: 1 " in text), "")
    took = re.search(r"training took (\S+) minutes", "".join(texts))
    machine = next((text for text in texts if text.startswith("torch ")), "").strip()
    if log.count("Test set: ") != EPOCHS or utils.STAND_IN in log or not took or not machine:
        missing = f"the notebook has no log of {EPOCHS} epochs on CIFAR-10"
        raise ValueError(f"{missing}: run all of its cells first")
    training, test = (
        re.findall(r"Accuracy=([\d.]+)%", log)[-1],
        re.findall(r"\(([\d.]+)%\)", log)[-1],
    )
    rows, others = read(ablation.CSV), read(published.CSV)
    header = ["test accuracy (%):", "training accuracy (%):", "minutes:", "machine"]
    return {
        "headline": headline(rows, others),
        "questions": questions(rows, others),
        "compare": compare(rows),
        "run": table(header, [[test, training, took[1], machine]]),
        "log": f"```text\n{log.strip()}\n```",
        "ladder": ladder(rows),
        "batches": batches(rows),
        "untrained": asked([setting.name for setting in untrained.NETWORKS]),
        "tuning": tuning_table(read(tuning.CSV)),
        "benchmark": (ROOT / "experiments" / "benchmark_cpu.txt").read_text("utf-8").strip(),
    }


def fill(text, texts):
    """A README's text with each measured part renewed."""
    marked = r"<!-- (\w+) -->\n.*?<!-- /\1 -->"
    renewed = lambda m: f"<!-- {m[1]} -->\n{texts[m[1]]}\n<!-- /{m[1]} -->"  # noqa: E731
    return re.sub(marked, renewed, text, flags=re.DOTALL)


def main():
    """Renew the parts and the figure of the solutions. ValueError, before a file is written."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    texts = parts(notebook)
    for cell in notebook.cells:
        cell.source = fill(cell.source, texts)
    nbformat.write(notebook, NOTEBOOK)
    for path in READMES:
        path.write_text(fill(path.read_text(encoding="utf-8"), texts), encoding="utf-8")
    published.draw()


if __name__ == "__main__":
    main()
