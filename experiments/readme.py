"""Fill the tables and the log of both READMEs and of the notebook's text from what measured them.

    python -m experiments.readme

A part stands between <!-- NAME --> and <!-- /NAME -->. The log and the run come from the outputs of
the notebook, the rest from the CSVs and benchmark_cpu.txt. A test fails when a page is not what
this script would write. The figure of the solutions is drawn again.
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
    text = " to ".join(dict.fromkeys([min(found), max(found)]))
    return YES.get(text, text)


def answers(name):
    """The three answers of the untrained networks of one name."""
    return [answer(name, question) for question in utils.Diagnosis._fields]


def way(rows, others):
    """From the published solution to ours: the three answers of each network, and each step."""
    theirs = others[PUBLISHED]
    asked = [YES[theirs["mixes"]], theirs["sees"], theirs["directions"]]
    rebuilt, before = values(rows, ablation.REBUILT), []
    lines = [
        ["the published solution, shreyash-99: its log", *asked, theirs["accuracy"], "1", ""],
        [ablation.REBUILT, *asked, result(rebuilt), str(len(rebuilt)), ""],
    ]
    for setting in ablation.LADDER:
        name = setting.name
        runs = values(rows, name)
        change = f"{difference(runs, before)[0]:+.1f}".replace("-", "−") if before else ""
        found = [*answers(name), result(runs), str(len(runs)), change]
        lines.append([ablation.LABELS.get(name, name), *found])
        before = runs
    header = ["network and training", "mixes", "sees (of 32):", "directions:"]
    return table([*header, "test accuracy (%):", "runs:", "step:"], lines)


def fixed(others):
    """Two solutions of others, with a fix and otherwise their own training."""
    runs, lines = read(published.FIXED), []
    for row in others[:2]:
        name = row["repository"]
        each = [float(run["accuracy"]) for run in runs if run["repository"] == name]
        lines.append([name, row["accuracy"], result(each)])
    return table(["solution", "its log (%):", "fixed (%):"], lines)


def compare(rows, settings):
    """Networks against the one without blocks, and in how many directions their logits differ."""
    bare, lines = values(rows, ablation.BARE.name), []
    for setting in settings:
        runs = values(rows, setting.name)
        against = "" if setting == ablation.BARE else step(runs, bare)
        directions = answer(setting.name, "directions")
        lines.append([setting.name, result(runs), str(len(runs)), against, directions])
    header = ["network", "test accuracy (%):", "runs:", "against *no blocks* (± standard error):"]
    return table([*header, "directions, untrained:"], lines)


def cube(rows):
    """Eight networks, each question answered badly or well; those that mix in other batches."""
    columns, lines = ["accuracy", "one_by_one", "sorted_by_class"], []
    for setting in [ablation.FORMULA, *ablation.CUBE]:
        found = [result(values(rows, setting.name, column)) for column in columns]
        lines.append([setting.name, *answers(setting.name), *found])
    header = ["network", "mixes", "sees:", "directions:", "test accuracy (%):"]
    return table([*header, "one image alone:", "sorted by class:"], lines)


def views(rows):
    """The last steps of the way, asked of an image alone and of both its views."""
    lines = []
    for name in [setting.name for setting in ablation.LADDER[-4:]]:
        runs = [result(values(rows, name, column)) for column in ("accuracy", "mirrored")]
        lines.append([ablation.LABELS.get(name, name), *runs])
    return table(["network and training", "one view (%):", "both views (%):"], lines)


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
    machine = re.search("^torch .*", "\n".join(texts), re.MULTILINE)
    if log.count("Test set: ") != EPOCHS or utils.STAND_IN in log or not took or not machine:
        missing = f"the notebook has no log of {EPOCHS} epochs on CIFAR-10"
        raise ValueError(f"{missing}: run all of its cells first")
    training, test = (
        re.findall(r"Accuracy=([\d.]+)%", log)[-1],
        re.findall(r"\(([\d.]+)%\)", log)[-1],
    )
    rows, others = read(ablation.CSV), read(published.CSV)
    header = ["test accuracy (%), one run:", "training accuracy (%):", "minutes:", "machine"]
    return {
        "way": way(rows, others),
        "fixed": fixed(others),
        "cube": cube(rows),
        "compare": compare(rows, ablation.VARIANTS),
        "others": compare(rows, ablation.OTHERS),
        "run": table(header, [[test, training, took[1], machine[0]]]),
        "log": f"```text\n{log.strip()}\n```",
        "views": views(rows),
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
