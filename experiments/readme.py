"""Fill the measured parts of both READMEs and of the notebook's text from what measured them.

    python -m experiments.readme

A part stands between <!-- NAME --> and <!-- /NAME -->. The training log comes from the outputs of
the notebook, the rest from the CSVs and benchmark_cpu.txt. A test fails when a page is not what
this script would write. The figures of the tables are drawn anew.
"""

import re
import statistics
from pathlib import Path

import nbformat

import utils
from experiments import ablation, published, stall, tuning
from experiments.harness import EPOCHS, read, values

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "Session-9_Assignment.ipynb"
READMES = ROOT / "README.md", ROOT / "experiments" / "README.md"


def table(header, rows):
    """A Markdown table; a column whose name ends in a colon is aligned to the right."""
    rule = ["---:" if name.endswith(":") else "---" for name in header]
    return "\n".join(
        f"| {' | '.join(cells)} |" for cells in ([name.rstrip(":") for name in header], rule, *rows)
    )


def mean_and_deviation(numbers):
    """Mean and sample standard deviation; few or widely scattered runs as they are."""
    if len(numbers) < 3 or len(numbers) < 5 and statistics.stdev(numbers) > 3:
        return ", ".join(f"{number:.2f}" for number in numbers)
    return f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}"


def signed(gain, error):
    return f"{gain:+.2f} ± {error:.2f}".replace("-", "−")


def lowest_to_highest(numbers):
    low, high = f"{min(numbers):.1g}", f"{max(numbers):.1g}"
    return low if low == high else f"{low} to {high}"


def difference(rows, setting, other, column="accuracy"):
    """The difference of two settings' mean test accuracy, and its standard error."""
    runs = [values(rows, which.name, column) for which in (setting, other)]
    error = sum(statistics.variance(run) / len(run) for run in runs) ** 0.5
    return statistics.mean(runs[0]) - statistics.mean(runs[1]), error


def directions(name):
    """How many directions of X an untrained network passes to the logits."""
    return lowest_to_highest(values(read(stall.CSV), name, "directions"))


def story(rows):
    """The four rows of README.md, and what they say."""
    runs = {label: values(rows, setting.name) for setting, (label, *_) in ablation.STORY.items()}
    lines = [
        [label, mean_and_deviation(accuracies), str(len(accuracies))]
        for label, accuracies in runs.items()
    ]
    variants = ablation.STALLED, ablation.RESCALED, ablation.OURS, ablation.RESIDUAL
    stalled, rescaled, ours, residual = (
        (directions(setting.name), f"{abs(difference(rows, setting, ablation.BARE)[0]):.1f}")
        for setting in variants
    )
    return (
        f"{table(['network', 'test accuracy (%):', 'runs:'], lines)}\n\n"
        "A *direction* is a singular value of d logits / d (input of the blocks) above a hundredth of the largest. "
        f"Four untrained blocks with PyTorch's initialisation pass {stalled[0]} direction, and after the training they "
        f"cost {stalled[1]} points. Our initialisation passes {ours[0]}, and the blocks cost {ours[1]}. Residuals pass "
        f"{residual[0]}, the most that a softmax of ten logits reads, and the blocks gain {residual[1]}. Variance is "
        "not enough: PyTorch's blocks, scaled so that all of the variance between images remains, pass "
        f"{rescaled[0]} and cost {rescaled[1]}."
    )


def steps(rows, best):
    """What each step adds, from the first above the best of the others."""
    names = [setting.name.removeprefix("+ ") for setting in ablation.LADDER[1:-1]] + [
        "crop by 4, no flip"
    ]
    names[1] += f" (one of three runs falls to {min(values(rows, ablation.FASTER.name)):.2f})"
    pairs = zip(names, ablation.LADDER, ablation.LADDER[1:])
    gains = "; ".join(
        f"{signed(*difference(rows, after, before))} {name}" for name, before, after in pairs
    )
    mirror = difference(rows, ablation.MIRRORED, ablation.AVERAGED, "mirrored")
    first = statistics.mean(values(rows, ablation.POOLED.name))
    return (
        f"Attention per image, pools and no augmentation reach {first:.2f} %, {first - best:.2f} above the best of the "
        f"others. From there to ours each step adds, with one view (± standard error): {gains}. With both views of "
        f"both networks, the mirror image adds {signed(*mirror)}. In our network our initialisation adds "
        f"{signed(*difference(rows, ablation.OURS, ablation.STALLED))}."
    )


def ladder(rows):
    lines = []
    for setting in ablation.LADDER:
        one, both = (values(rows, setting.name, column) for column in ("accuracy", "mirrored"))
        name = ablation.LABELS.get(setting, setting.name)
        lines.append([name, mean_and_deviation(one), mean_and_deviation(both), str(len(one))])
    return table(["network and training", "one view (%):", "both views (%):", "runs:"], lines)


def variants(rows):
    lines = []
    for setting in ablation.VARIANTS:
        runs, ranks = (
            values(rows, setting.name, column) for column in ("accuracy", "effective_rank")
        )
        against = (
            "" if setting == ablation.BARE else signed(*difference(rows, setting, ablation.BARE))
        )
        lines.append(
            [
                setting.name,
                mean_and_deviation(runs),
                str(len(runs)),
                against,
                lowest_to_highest(ranks),
            ]
        )
    header = [
        "network",
        "test accuracy (%):",
        "runs:",
        "against *no blocks* (± standard error):",
        "effective rank:",
    ]
    return table(header, lines)


def tuning_table(rows):
    lines = []
    for setting in tuning.SETTINGS:
        runs = values(rows, setting.name, "mirrored")
        lines.append(
            [setting.name, ", ".join(f"{run:.2f}" for run in runs), f"{statistics.mean(runs):.2f}"]
        )
    return table(
        ["change", "validation accuracy, both views, of seeds 1, 2, ... (%)", "mean:"], lines
    )


def untrained_blocks(rows):
    lines = []
    for name in stall.NETWORKS:
        shares = [
            lowest_to_highest(values(rows, name, f"after block {number}")) for number in (1, 4)
        ]
        lines.append([name, *shares, directions(name)])
    header = ["untrained network", "variance after block 1:", "after block 4:", "directions:"]
    return table(header, lines)


def parts(notebook):
    """The text of each measured part, by its name.

    Raises ValueError: the notebook's training is not whole, or it ran on the stand-in.
    """
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    texts = [
        "".join("".join(out.get("text", "")) for out in cell["outputs"]) for cell in cells
    ]  # printed by each
    log = next((text for text in texts if "EPOCH: 1 " in text), "")
    took = re.search(r"training took (\S+) minutes", "".join(texts))
    if log.count("Test set: ") != EPOCHS or utils.STAND_IN in log or not took:
        raise ValueError(
            f"the notebook has no log of {EPOCHS} epochs on CIFAR-10: run all of its cells first"
        )
    machine = next(text for text in texts if text.startswith("torch ")).strip()
    training, test = (
        re.findall(r"Accuracy=([\d.]+)%", log)[-1],
        re.findall(r"\(([\d.]+)%\)", log)[-1],
    )
    rows = read(ablation.CSV)
    ours, others = (
        values(rows, ablation.OURS.name),
        [float(row["accuracy"]) for row in read(published.CSV)],
    )
    return {
        "headline": f"**{mean_and_deviation(ours)} % on CIFAR-10's test set** (mean ± standard deviation of "
        f"{len(ours)} seeds). The best of {len(others)} other public solutions has {max(others):.2f} %.",
        "story": story(rows),
        "steps": steps(rows, max(others)),
        "time": f"The 24 epochs take {took[1]} minutes ({machine.partition(' on ')[2]}).",
        "run": f"The run of the notebook, seed 1: {test} % test accuracy, {training} % training accuracy ({machine}).",
        "log": f"```text\n{log.strip()}\n```",
        "ladder": ladder(rows),
        "variants": variants(rows),
        "directions": "With PyTorch's initialisation they are close to uniform: four untrained blocks pass "
        f"{directions(ablation.STALLED.name)} direction, as with uniform rows. Without the softmax they pass "
        f"{directions(stall.NO_SOFTMAX)} ([table](experiments/README.md#untrained-blocks)).",
        "stall": untrained_blocks(read(stall.CSV)),
        "tuning": tuning_table(read(tuning.CSV)),
        "benchmark": (ROOT / "experiments" / "benchmark_cpu.txt").read_text("utf-8").strip(),
    }


def fill(text, texts):
    """A README's text with each measured part renewed."""
    marked = r"<!-- (\w+) -->\n.*?<!-- /\1 -->"
    return re.sub(
        marked, lambda m: f"<!-- {m[1]} -->\n{texts[m[1]]}\n<!-- /{m[1]} -->", text, flags=re.DOTALL
    )


def main():
    """Renew the measured parts and the figures of the tables. ValueError, before a file is written:
    as in ``parts``."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    texts = parts(notebook)
    for cell in notebook.cells:
        cell.source = fill(cell.source, texts)
    nbformat.write(notebook, NOTEBOOK)
    for path in READMES:
        path.write_text(fill(path.read_text(encoding="utf-8"), texts), encoding="utf-8")
    ablation.draw()
    published.draw()


if __name__ == "__main__":
    main()
