"""What a user relies on in the notebook and the README, as they stand and in Colab."""

import contextlib
import json
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import nbformat
import numpy as np
import PIL.Image
import pytest
import torch
from nbconvert import HTMLExporter

import utils
from experiments.ablation import CSV as ABLATION
from experiments.collapse import CSV as COLLAPSE
from experiments.collapse import JOBS
from experiments.harness import CHANCE, COLLAPSED, EPOCHS, Setting, read
from experiments.readme import fill, gap, spread, values
from experiments.tuning import CSV as TUNING
from model9 import UltimusNet

ROOT = Path(__file__).parents[1]
NOTEBOOK = ROOT / "Session-9_Assignment.ipynb"
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# --- the page --------------------------------------------------------------------


def test_every_cell_was_executed_in_order_without_an_error(notebook):
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for cell in cells for output in cell.outputs)


def test_the_page_has_no_widget_no_escape_code_no_carriage_return_and_no_error_stream(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    streams = [output for output in outputs if output.output_type == "stream"]
    assert all(output.name == "stdout" for output in streams)
    assert not any(c in output.text for output in streams for c in "\r\x1b\b")
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))
    assert "widgets" not in notebook.metadata
    page, _ = HTMLExporter().from_notebook_node(notebook)
    assert '<script type="application/vnd.jupyter.widget' not in page and "\r" not in page


def test_the_training_log_has_one_line_an_epoch(notebook):
    (log,) = [o.text for c in code_cells(notebook) for o in c.outputs if "EPOCH: 1 " in o.get("text", "")]
    lines = [line for line in log.splitlines() if line]
    assert len([line for line in lines if line.startswith("EPOCH")]) == 24
    steps = -(-50_000 // Setting("ours").batch_size)
    assert len([line for line in lines if f"| {steps}/{steps} [" in line]) == 24
    assert len([line for line in lines if line.startswith("Test set")]) == 24
    assert len(lines) in (72, 73)  # 73: the mark of the stand-in


def test_the_notebook_is_small_and_its_figures_are_pngs(notebook):
    assert NOTEBOOK.stat().st_size < 3_000_000
    figures = [o for c in code_cells(notebook) for o in c.outputs if "image/png" in o.get("data", {})]
    assert len(figures) == 8


def test_the_notebook_asks_colab_for_a_gpu_and_has_a_badge(notebook):
    assert notebook.metadata.accelerator == "GPU"
    assert "colab.research.google.com/github/shreyash-99/EVA8/blob/" in notebook.cells[0].source


def test_no_cell_is_longer_than_a_screen_and_each_has_a_text_near_it(notebook):
    for before, cell in zip(notebook.cells, notebook.cells[1:]):
        assert cell.cell_type == "markdown" or len(cell.source.splitlines()) <= 32
        assert before.cell_type == "markdown" or cell.cell_type == "markdown" or "plot" in cell.source + before.source


def test_the_experiments_compare_the_setting_that_the_notebook_trains(notebook):
    constants = r"EPOCHS, BATCH_SIZE, MAX_LR, BLOCK_RATE, SEED = (\d+), (\d+), ([\d.]+), ([\d.]+), \d+"
    told = [float(number) for number in re.search(constants, NOTEBOOK.read_text(encoding="utf-8")).groups()]
    ours = Setting("ours")
    assert told == [EPOCHS, ours.batch_size, ours.max_lr, ours.block_rate]


# --- the README --------------------------------------------------------------------


def test_the_readmes_log_tables_and_figures_are_the_measured_ones():
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert fill(README, notebook) == README, "run python -m experiments.readme"


def test_a_readme_without_a_mark_or_a_notebook_without_a_whole_training_on_cifar10_is_refused():
    text = NOTEBOOK.read_text(encoding="utf-8")
    with pytest.raises(ValueError, match="one <!-- seeds --> and one <!-- /seeds -->"):
        fill(README.replace("<!-- /seeds -->", ""), json.loads(text))
    with pytest.raises(ValueError, match="24 epochs"):
        fill(README, json.loads(text.replace("EPOCH: 24 ", "EPOCH: 24 \\nTest set: ")))
    with pytest.raises(ValueError, match="ran on the synthetic stand-in: get CIFAR-10"):
        fill(README, json.loads(text.replace('"CIFAR-10 (', '"synthetic stand-in (')))


def test_the_saved_figures_are_those_of_the_notebook(notebook):
    import base64
    import io

    shown = [o.data["image/png"] for c in code_cells(notebook) for o in c.outputs if "image/png" in o.get("data", {})]
    shown = [matplotlib.image.imread(io.BytesIO(base64.b64decode(png))) for png in shown]
    names = "augmented_samples block_spectra lr_finder lr_schedule test_train_loss_accuracy misclassified_imgs"
    for picture, name in zip(shown, f"{names} confusion_matrix attention_maps".split()):
        saved = matplotlib.image.imread(ROOT / "images" / f"{name}.png")
        assert saved.shape == picture.shape and np.array_equal(saved, picture), name


def test_every_relative_link_and_image_of_the_readme_exists_and_images_have_alt_texts():
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", README)
    assert len(links) > 10
    for image, text, target in links:
        assert not image or len(text) > 5, target
        if not target.startswith(("http", "#")):
            assert (ROOT / target).exists(), target
    headings = {
        re.sub(r"[^\w -]", "", h).strip().lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)", README, re.M)
    }
    assert {target[1:] for _, _, target in links if target.startswith("#")} <= headings


def test_ci_runs_exactly_the_readmes_test_command():
    (command,) = re.findall(r"^(python3 -m venv .*pytest --nbval)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")


def runs_of(path):
    """Each setting's accuracies in a CSV, by its name."""
    rows = read(path)
    return {row["name"]: values(rows, row["name"]) for row in rows}


def test_the_blocks_are_worth_what_the_readme_says_of_them():
    rows, name = read(ABLATION), "{}, average pools for the blurs"
    costs = gap(rows, "ours", "no blocks"), gap(rows, name.format("ours"), name.format("no blocks"))
    costs = [re.fullmatch(r"−(.*) ± .*", cost)[1] for cost in costs]
    assert "in two comparisons they take {:.1f} and {:.1f} points.\n".format(*map(float, costs)) in README
    for column in ("accuracy", "mirrored", "train_accuracy"):
        assert re.match(r"−0\.[2-6]\d ± ", gap(rows, "ours", "no blocks", column))
    section = README[README.index("## What the blocks cost") : README.index("## How far it is")]
    for name in ("linear 48 > 8 > 48, no blocks", "1 block", "3 blocks", "ours with residuals"):
        assert f"{spread(values(rows, name))} %" in section


def test_the_blocks_full_rate_and_the_start_are_worth_what_the_readme_says_of_them():
    runs = runs_of(ABLATION)
    lost, *others = sorted(runs["+ batch 128, max_lr 0.01"])
    assert len(others) == 2 and round(min(others) - lost) == 12
    mean = {name: statistics.mean(own) for name, own in runs.items()}
    assert round(mean["+ our start"] - mean["+ our pools, blurs and dilation"]) == 7
    ends = [mean["ours"] - run for run in runs["ours with PyTorch's start"]]
    assert (round(min(ends)), round(max(ends))) == (11, 20)
    plain = mean["+ attention per image"], mean["attention per image, our start, the plain stem"]
    assert tuple(map(round, plain)) == (55, 71)


def test_the_trials_are_worth_what_the_readme_says_of_them():
    tuned, pools = read(TUNING), "average pools 3x3/2 in place of the blurs"
    runs = runs_of(TUNING)
    usual = runs.pop("none")
    assert f"The eight runs of *none* have a standard deviation of {statistics.stdev(usual):.2f}." in README
    texts = {pools: "average pools of 3x3 {} points", "crop by 4": "a crop by 4 {}"}
    texts |= {"first max-pools 3x3": "first max-pools of 3x3 {}", "c 0.5": "c of 0.5 {}"}
    assert {name for name, own in runs.items() if own[0] > usual[0] + 1} == texts.keys()
    for name, text in texts.items():
        lead = gap([row for row in tuned if 2 <= int(row["seed"]) <= len(runs[name])], name, "none")
        size, error = map(float, lead.replace("−", "-").split(" ± "))
        assert text.format(lead) in README and abs(size) < error
    rows, pools = read(ABLATION), "ours, average pools for the blurs"
    assert f"asked before the last four of their seeds, {gap(rows, pools, 'ours')} over five)" in README
    cost = gap(rows, pools, "no blocks, average pools for the blurs").removeprefix("−")
    assert f"With average pools in place of the blurs the blocks cost {cost} points" in README


def test_the_collapses_are_what_the_readme_says_of_them():
    runs = runs_of(COLLAPSE)
    usual, high, higher, highest, fifth, full = (runs[name] for name in dict.fromkeys(s.name for s, _ in JOBS))
    worst = min(usual)
    assert len(usual) == 10 and worst > 70
    assert statistics.mean(high) > statistics.mean(usual) - 0.5  # no worse at three times the rate
    assert sum(run < worst - 1 for run in higher) == sum(run < worst - 1 for run in fifth) == 2  # behind
    assert all(COLLAPSED + CHANCE < run < worst - 15 for run in highest) and max(full) < COLLAPSED
    left = values(read(COLLAPSE), "6 x max_lr", "directions")
    assert {8 - count for count in left} == {2, 3}


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "LA"])
def test_the_readmes_snippet_names_the_class_of_a_picture_as_it_stands(tmp_path, monkeypatch, capsys, mode):
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    PIL.Image.effect_mandelbrot((70, 50), (-2, -1, 1, 1), 20).convert(mode).save(tmp_path / "picture.jpg", "PNG")
    (tmp_path / "ultimus.pt").write_bytes((ROOT / "ultimus.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    lines = capsys.readouterr().out.splitlines()
    names, shares = zip(*(re.fullmatch(r"(\w+): (\d+\.\d)%", line).groups() for line in lines))
    assert len(set(names) & set(utils.CLASSES)) == 3 and sum(map(float, shares)) <= 100.1
    assert sorted(map(float, shares), reverse=True) == list(map(float, shares))


def test_the_committed_weights_belong_to_the_network_that_the_readme_lists():
    model = utils.load(UltimusNet(), ROOT / "ultimus.pt").eval()
    table = README[README.index("| part | output | parameters |") : README.index("\n\nThe blur is")]
    rows = re.findall(r"^\| .* \| (\d+ x \d+ x \d+|\d+) \| (?:4 x )?([\d,]+) \|$", table, re.MULTILINE)
    x, shapes = torch.zeros(1, 3, 32, 32), []
    for part in model.stem:
        x = part(x)
        shapes.append((" x ".join(map(str, x.shape[1:])), f"{sum(p.numel() for p in part.parameters()):,}"))
    assert rows[:3] == shapes
    assert rows[3:] == [("48", f"{sum(p.numel() for p in model.blocks[0].parameters()):,}"), ("10", "490")]


# --- Colab, Kaggle and elsewhere ---------------------------------------------------

DRIVER = """
import importlib.util, json, os, subprocess, sys, types
from pathlib import Path

place, times, lacking, upload = sys.argv[1], int(sys.argv[2]), sys.argv[3].split(), sys.argv[4]
exec(sys.argv[6])
if place == "colab":  # /content stands before '' there
    sys.path[:0] = [os.getcwd(), ""]
    colab = sys.modules["google.colab"] = types.ModuleType("google.colab")
    def choose():  # as Colab does, under another name where one is taken
        chosen = {}
        for file in Path(upload).glob("*.py") if upload else []:
            path = Path(f"{file.stem} (1).py" if Path(file.name).exists() else file.name)
            path.write_bytes(file.read_bytes())
            chosen[path.name] = file.read_bytes()
        return chosen
    colab.files = types.SimpleNamespace(upload=choose)
else:
    sys.path.insert(0, "")
    if place == "kaggle":
        os.environ["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
calls, run, find = [], subprocess.getstatusoutput, importlib.util.find_spec

def record(command, **options):
    calls.append(command)
    return run(command, **options) if "pip" not in command else (int("pip fails" in upload), "no internet")

subprocess.getstatusoutput = record
importlib.util.find_spec = lambda name: None if name in lacking else find(name)
cells = json.loads(Path(sys.argv[5]).read_text(encoding="utf-8"))["cells"]
packages, files, imports = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"][:3]
error = None
try:
    main = {"__name__": "__main__"}
    for source in [*(times * [packages, files]), imports]:
        exec(source, main)
except Exception as caught:
    error = f"{type(caught).__name__}: {caught}"
found = {name: getattr(sys.modules.get(name), "__file__", None) for name in ("model9", "utils")}
folders = [os.environ.get(name) for name in ("CIFAR10_ROOT", "ULTIMUS_OUTPUT")]
print(json.dumps({"calls": calls, "error": error, "found": found, "cwd": os.getcwd(), "folders": folders}))
"""


# Nothing of git's that the user has set: no identity, hooks, signature or other repository.
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
ENVIRONMENT |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}


def start(folder, repository, place="colab", times=1, lacking="", upload="", before="", **environment):
    """Run the notebook's first three cells in ``folder``, as in ``place``, without the packages ``lacking``."""
    command = [sys.executable, "-c", DRIVER, place, str(times), lacking, str(upload), str(NOTEBOOK), before]
    environment = ENVIRONMENT | {"ULTIMUS_REPOSITORY": str(repository), "PYTHONPATH": ""} | environment
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def put_ours(folder):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model9.py", "utils.py"):
        (folder / name).write_bytes((ROOT / name).read_bytes())


@pytest.fixture
def repository(tmp_path):
    """A repository with our files in the folder that was handed in."""
    put_ours(tmp_path / "EVA8" / "Session_9_Assignment")
    return commit(tmp_path / "EVA8")


def commit(repository):
    mine = {f"GIT_{who}_{what}": "test@example.com" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "hand in"]):
        subprocess.run(["git", "-C", repository, *command], check=True, env=ENVIRONMENT | mine)
    return repository


@pytest.fixture
def alone(tmp_path):
    (tmp_path / "content").mkdir()
    return tmp_path / "content"


def clones(result):
    return [call for call in result["calls"] if "git clone" in call]


@pytest.mark.parametrize("place", ["colab", "kaggle"])
@pytest.mark.parametrize("times", [1, 2])
def test_alone_in_colab_or_kaggle_the_notebook_brings_its_files_once(repository, alone, place, times):
    result = start(alone, repository, place, times)
    assert result["error"] is None
    assert Path(result["cwd"]).name == "Session_9_Assignment" and Path(result["cwd"]).parents[1] == alone
    assert all(file.startswith(result["cwd"]) for file in result["found"].values())
    assert len(clones(result)) == 1


@pytest.mark.parametrize(
    "theirs",
    [
        "EVA8/Session_9_Assignment/model9.py",  # a folder of their own
        "utils.py",
        "utils/__init__.py",
        "utils.py/notes.txt",
        "EVA8",  # a file
    ],
)
@pytest.mark.parametrize("beside", ["nothing of ours", "our model9.py", "half of our utils.py"])
def test_what_stands_in_the_way_is_neither_used_nor_touched(repository, alone, theirs, beside):
    path = alone / theirs
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("class Mine: pass", encoding="utf-8")
    if beside == "our model9.py":
        (alone / "model9.py").write_bytes((ROOT / "model9.py").read_bytes())
    if beside == "half of our utils.py":
        put_ours(alone / "Session_9_Assignment")
        (alone / "Session_9_Assignment" / "utils.py").write_bytes((ROOT / "utils.py").read_bytes()[:20_000])
    result = start(alone, repository)
    assert result["error"] is None and path.read_text(encoding="utf-8") == "class Mine: pass"
    assert all("ultimus-" in file for file in result["found"].values())


def test_colabs_torch_is_not_replaced(repository, alone):
    installs = [call for call in start(alone, repository, lacking="torch_lr_finder")["calls"] if "pip" in call]
    assert len(installs) == 1 and installs[0].endswith("pip install -q --no-deps torch-lr-finder")


@pytest.mark.parametrize("place, upload", [("colab", "pip fails"), ("kaggle", "pip fails"), ("elsewhere", "")])
def test_a_package_that_is_missing_is_named_at_once_with_the_command_that_brings_it(alone, place, upload):
    put_ours(alone)
    result = start(alone, alone, place, lacking="torch_lr_finder torchsummary", upload=upload)
    assert "`%pip install torchsummary torch-lr-finder`" in result["error"]
    assert ("pip: no internet" in result["error"]) == (place != "elsewhere")
    assert not any("pip" in call for call in result["calls"]) or place != "elsewhere"


def test_a_restarted_kernel_in_colab_downloads_nothing_again(repository, alone):
    start(alone, repository)
    again = start(alone, repository)
    assert again["error"] is None and clones(again) == []


@pytest.mark.parametrize("place", ["colab", "kaggle"])
def test_an_unreachable_address_ends_in_one_sentence_that_says_why_and_what_to_do(tmp_path, alone, place):
    result = start(alone, tmp_path / "nowhere", place)
    assert result["error"].startswith("RuntimeError: ") and result["error"].count(". ") == 0
    assert "nowhere: fatal: " in result["error"] and "put both next to this notebook" in result["error"]


def test_without_git_the_message_says_so(repository, alone):
    (alone / "bin").mkdir()
    (alone / "bin" / "sh").symlink_to("/bin/sh")
    result = start(alone, repository, PATH=str(alone / "bin"))
    assert "git" in result["error"] and "not found" in result["error"] and "put both next" in result["error"]


def test_somebody_elses_files_at_the_address_are_not_used(tmp_path, alone):
    folder = tmp_path / "EVA8" / "Session_9_Assignment"
    folder.mkdir(parents=True)
    for name in ("model9.py", "utils.py"):
        (folder / name).write_text("raise SystemExit('code of others ran')\n", encoding="utf-8")
    result = start(alone, f"file://{commit(tmp_path / 'EVA8')}")
    assert (
        "EVA8: done, but it doesn't have them" in result["error"]
        and "put both next to this notebook" in result["error"]
    )
    assert result["found"] == {"model9": None, "utils": None}


def test_files_uploaded_next_to_the_notebook_are_used_without_a_clone(tmp_path, alone):
    put_ours(alone)
    result = start(alone, tmp_path / "nowhere")
    assert result["error"] is None and result["cwd"] == str(alone) and clones(result) == []


@pytest.mark.parametrize("theirs", ["", "utils.py"])
def test_files_chosen_in_colabs_dialogue_are_used(tmp_path, alone, theirs):
    put_ours(tmp_path / "laptop")
    if theirs:
        (alone / theirs).write_text("class Mine: pass", encoding="utf-8")
    result = start(alone, tmp_path / "nowhere", upload=tmp_path / "laptop")
    assert result["error"] is None and Path(result["cwd"]).parents[1] == alone
    assert all(file.startswith(result["cwd"]) for file in result["found"].values())


def test_a_module_of_theirs_that_was_imported_before_is_not_taken_for_ours(tmp_path, alone):
    put_ours(alone / "Session_9_Assignment")
    (alone / "utils.py").write_text("class Mine: pass", encoding="utf-8")
    result = start(alone, tmp_path / "nowhere", "elsewhere", before="import utils")
    assert result["error"] is None and result["found"]["utils"].startswith(result["cwd"])


def test_folders_named_relative_to_the_working_folder_stay_the_ones_that_were_meant(tmp_path, alone):
    put_ours(alone / "Session_9_Assignment")
    result = start(alone, tmp_path, "elsewhere", CIFAR10_ROOT="data", ULTIMUS_OUTPUT="~/out", HOME=str(tmp_path))
    assert result["folders"] == [str(alone / "data"), str(tmp_path / "out")]


def test_a_repository_of_ones_own_may_be_named_with_a_tilde(repository, alone):
    assert start(alone, "~/EVA8", HOME=str(repository.parent))["error"] is None


@pytest.mark.parametrize("below", ["", "..", "Session_9_Assignment", "EVA8/Session_9_Assignment"])
def test_from_another_working_folder_the_files_are_found_and_nothing_is_cloned(tmp_path, alone, below):
    put_ours(alone / below)
    result = start(alone, tmp_path / "nowhere", "elsewhere")
    assert result["error"] is None and result["cwd"] == str((alone / below).resolve()) and result["calls"] == []


def test_elsewhere_the_message_says_where_it_looked_and_claims_no_clone(tmp_path, alone):
    result = start(alone, tmp_path / "nowhere", "elsewhere")
    assert str(alone) in result["error"] and "Colab and Kaggle only" in result["error"] and result["calls"] == []


# --- all cells, on little data -------------------------------------------------------


@pytest.fixture
def sources(notebook, monkeypatch, small, tmp_path):
    """The code cells, set to two epochs on 96 random images."""
    images, labels = small[0].images, small[0].labels
    monkeypatch.setattr(utils, "load_cifar10", lambda: utils.Images(images, labels, images, labels))
    monkeypatch.setenv("ULTIMUS_OUTPUT", str(tmp_path))
    monkeypatch.chdir(ROOT)
    sources = [cell.source for cell in code_cells(notebook)]
    assert "= 24, 128," in sources[2]
    sources[2] = sources[2].replace("= 24, 128,", "= 2, 16,")
    return sources


def test_all_cells_run_twice_in_one_kernel_and_the_training_alone_once_more(sources, capsys):
    kernel = {}
    for source in [*sources, *sources]:
        exec(source, kernel)
    (training,) = [source for source in sources if "utils.fit(" in source]
    capsys.readouterr()
    exec(training, kernel)
    exec(training, kernel)
    first, second = capsys.readouterr().out.split("EPOCH: 1 ")[1:]
    assert re.findall(r"Accuracy: .*", first) == re.findall(r"Accuracy: .*", second)


@pytest.mark.parametrize("epoch", [1, 2])
def test_a_training_that_is_stopped_leaves_the_figures_and_weights_of_the_last_whole_one_alone(
    sources, monkeypatch, tmp_path, epoch
):
    (tmp_path / "images").mkdir()
    before = {tmp_path / "ultimus.pt": b"weights", tmp_path / "images" / "confusion_matrix.png": b"figure"}
    for path, content in before.items():
        path.write_bytes(content)
    train = utils.train

    def interrupt(*args):
        if args[-1] == epoch:
            raise KeyboardInterrupt
        return train(*args)

    monkeypatch.setattr(utils, "train", interrupt)
    kernel = {}
    with pytest.raises(KeyboardInterrupt) if epoch == 1 else contextlib.nullcontext():  # which ends Run all
        for source in sources:
            exec(source, kernel)
    for source in sources[next(i for i, source in enumerate(sources) if "utils.save(" in source) :]:
        with contextlib.suppress(NameError):  # a history, after an interrupt in epoch 1
            exec(source, kernel)
    assert all(path.read_bytes() == content for path, content in before.items())
    assert (tmp_path / "marked" / "ultimus.pt").exists()


def test_a_cell_that_is_run_too_early_says_which_name_is_missing(sources):
    for source in sources[3:]:
        with pytest.raises(NameError, match=r"name '\w+' is not defined"):
            exec(source, {})
