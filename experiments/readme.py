"""Fill the measured parts of README.md and experiments/README.md from what measured them.

    python -m experiments.readme

A part stands between <!-- NAME --> and <!-- /NAME -->. The training log comes from the outputs of the notebook, the
tables from the CSVs and benchmark.txt. A test fails when a README is not what this script would
write.
"""

import itertools
import json
import re
import statistics
from pathlib import Path

import utils
from experiments import ablation, heads, stall, tuning
from experiments.harness import EPOCHS, curves, read, values

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOK = ROOT / "Session-9_Assignment.ipynb"
READMES = ROOT / "README.md", ROOT / "experiments" / "README.md"
LEVEL = 60  # test accuracy (%)
STEPS = {  # rows of the ablation that README.md shows: label
    ablation.PUBLISHED.name: "published solution rebuilt",
    ablation.PER_IMAGE.name: "+ biases, constant beta1, no augmentation, attention per image",
    ablation.POOLED.name: "+ max-pools, blurs and dilation",
    ablation.INITIALISED.name: "+ our initialisation",
    ablation.FLIPPED.name: "+ batch 128, max_lr 0.01, blocks at a tenth of it, crop by 2 and flip",
    ablation.MIRRORED.name: "+ average pools in place of the blurs, the mirror image",
    ablation.OURS.name: "**ours**: crop by 4, no flip",
    ablation.STALLED.name: "ours with PyTorch's initialisation",
    ablation.BARE.name: "ours without blocks",
}


def table(header, rows):
    """A Markdown table; a column whose name ends in a colon is aligned to the right."""
    rule = ["---:" if name.endswith(":") else "---" for name in header]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in ([name.rstrip(":") for name in header], rule, *rows))


def listed(numbers):
    return ", ".join(f"{number:.2f}" for number in numbers)


def spread(numbers):
    """Mean and sample standard deviation, or each of few or widely scattered runs."""
    if len(numbers) < 3 or statistics.stdev(numbers) > 3:
        return listed(numbers)
    return f"{statistics.mean(numbers):.2f} ± {statistics.stdev(numbers):.2f}"


def signed(difference, error):
    return f"{difference:+.2f} ± {error:.2f}".replace("-", "−")


def between(numbers, digits=0):
    low, high = f"{min(numbers):.{digits}f}", f"{max(numbers):.{digits}f}"
    return low if low == high else f"{low} to {high}"


def averaged(rows, name):
    mirrored = spread(values(rows, name, "mirrored"))
    return f"Averaged over each image and its mirror image, *{name}* has {mirrored} %."


def ladder(rows):
    lines = []
    for setting in ablation.ORDER:
        test, ranks = values(rows, setting.name), values(rows, setting.name, "effective_rank")
        training = f"{statistics.mean(values(rows, setting.name, 'train_accuracy')):.1f}"
        lines.append([setting.name, spread(test), training, str(len(test)), between(ranks) if ranks else ""])
    told = table(["network and training", "test accuracy (%):", "training (%):", "runs:", "effective rank:"], lines)
    return f"{told}\n\n{averaged(rows, ablation.AVERAGED.name)}"


def passed(rows, name):
    """The epochs in which the runs of this name first pass ``LEVEL``. ValueError: one never does."""
    return between([1 + [accuracy > LEVEL for accuracy in run].index(True) for run in curves(rows, name)])


def trials(rows):
    trained = {setting.name: values(rows, setting.name) for setting in tuning.SETTINGS}
    lines = [[name, listed(runs), f"{statistics.mean(runs):.2f}"] for name, runs in trained.items()]
    told = table(["change", "validation accuracy of seeds 1, 2, ... (%)", "mean:"], lines)
    return f"{told}\n\n{averaged(rows, 'the network before')}"


def factor(rows, name):
    """By what a block divides the variance between images: geometric mean over the blocks and seeds."""
    return statistics.geometric_mean(values(rows, name, "after block 4")) ** -0.25


def gap(rows, name, other=ablation.BARE.name):
    """Two rows' difference in test accuracy, by default to no blocks, and its standard error."""
    runs = [values(rows, name), values(rows, other)]
    one, two = map(statistics.mean, runs)
    return one - two, sum(statistics.variance(told) / len(told) for told in runs) ** 0.5


def worth(rows):
    """New heads against the last layer alone on the same X: mean difference and its standard error over networks."""
    plain, *others = heads.HEADS
    lines = [[name] for name in others]
    for line, source in itertools.product(lines, heads.SOURCES):
        networks = [[row for row in rows if (row["source"], row["seed"]) == (source, str(n))] for n in heads.SEEDS]
        gaps = [statistics.mean(values(told, line[0])) - statistics.mean(values(told, plain)) for told in networks]
        line.append(signed(statistics.mean(gaps), statistics.stdev(gaps) / len(gaps) ** 0.5))
    return table(["new head", *(f"on X of {source}:" for source in heads.SOURCES)], lines)


def stalls(rows):
    lines = []
    for name in dict.fromkeys(row["name"] for row in rows):
        shares = ", ".join(f"{share:.2g}" for share in values(rows, name, "after block 4"))
        gradient = statistics.geometric_mean(values(rows, name, "gradient"))
        largest = between(values(rows, name, "largest"), 2)
        lines.append([name, shares, f"{factor(rows, name):,.0f}", f"{gradient:.1g}", largest])
    header = ["new network", "variance that remains, seeds 1 to 5", "divided by, a block:", "gradient:"]
    return table([*header, "largest share:"], lines)


def factors(rows):
    """The ``factor`` of PyTorch's initialisation, what its weights, √8 and the softmax take, and what is left then."""
    whole, _, softmax, root, weights, rest = (factor(rows, name) for name in stall.CHANGES)
    return whole, whole / weights, whole / root, whole / softmax, rest


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
    end = next((text for text in texts if "linear map" in text), "")
    r2, linear, accuracy, minutes = re.findall(r"-?\d+\.\d+", end)
    training = re.findall(r"Accuracy=([\d.]+)%", log)[-1]
    rows, stalled, fixed = read(ablation.CSV), read(stall.CSV), read(heads.CSV)
    whole, weights, root, softmax, _ = factors(stalled)
    against = ", ".join(f"*{setting.name}* {signed(*gap(rows, setting.name))}" for setting in ablation.COMPARED)
    own = [spread(values([row for row in fixed if row["source"] == name], heads.OWN)) for name in heads.SOURCES]
    first, _, third, *_ = zip(*curves(rows, "ours"))
    steps = [[label, spread(values(rows, name)), str(len(values(rows, name)))] for name, label in STEPS.items()]
    return {
        "headline": f"**{spread(values(rows, 'ours'))} % on CIFAR-10's test set** (mean ± standard deviation of "
        f"{len(first)} seeds).",
        "steps": table(["network and training", "test accuracy (%):", "runs:"], steps),
        "worth": worth(fixed),
        "together": f"Points of test accuracy against *no blocks* ± standard error: {against}.",
        "own": f"On the validation images, the networks without blocks have {own[0]} % and ours {own[1]} %.",
        "linear": f"For the trained network of the notebook, the best linear map from X to the logits reproduces {r2} "
        f"of their variance. This map alone has {linear} % test accuracy.",
        "time": f"The 24 epochs take {minutes} minutes ({machine.partition(' on ')[2]}). After one epoch our "
        f"{len(first)} runs have {between(first)} %, more than the published solution's 40 % at its end. After three "
        f"they have {between(third)} %, more than each of the [26 others](#others). A GPU is not measured.",
        "run": f"The run of the notebook, seed 1: {accuracy} % test accuracy, {training} % training accuracy "
        f"({machine}).",
        "log": f"```text\n{log.strip()}\n```",
        "product": "In a new network with PyTorch's initialisation a block divides the variance between images by "
        f"about {round(whole, -2):,.0f} (geometric mean). This is the product of {weights:.0f} from the weights of V "
        f"and Out, {root:.0f} from the division by √8 and {softmax:.0f} from the softmax ([each changed "
        "alone](experiments/README.md#new-blocks), five seeds). With all three changed the mean is 1. The rows of the "
        "softmax are nearly uniform: each entry of Z is nearly the mean of V / √8.",
        "epochs": f"With PyTorch's initialisation our network passes {LEVEL} % test accuracy in epoch "
        f"{passed(rows, ablation.STALLED.name)}, and with ours in epoch {passed(rows, 'ours')}.",
        "ladder": ladder(rows),
        "stall": stalls(stalled),
        "tuning": trials(read(tuning.CSV)),
        "benchmark": (ROOT / "experiments" / "benchmark.txt").read_text("utf-8").strip(),
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
