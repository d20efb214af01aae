"""What a user relies on in the notebook and the READMEs, on this machine, on Colab and on Kaggle."""

import ast
import base64
import copy
import io
import json
import os
import re
import statistics
import subprocess
import sys

import matplotlib.image
import nbformat
import numpy as np
import PIL.Image
import pytest
import torch
from nbclient import NotebookClient

import utils
from experiments import ablation, collapse, published, readme, run, tuning
from experiments.harness import CHANCE, COLLAPSED, EPOCHS, read, values
from experiments.readme import NOTEBOOK, READMES, ROOT, fill, gap, parts
from model9 import UltimusNet

README, TABLES = (path.read_text(encoding="utf-8") for path in READMES)


@pytest.fixture(scope="module")
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def pictures(notebook):
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    return [output.data["image/png"] for output in outputs if "image/png" in output.get("data", {})]


# --- the page --------------------------------------------------------------------


def test_every_cell_was_executed_in_order_without_error_stream_widget_escape_code_or_carriage_return(notebook):
    cells = code_cells(notebook)
    outputs = [output for cell in cells for output in cell.outputs]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert not any(output.output_type == "error" for output in outputs)
    streams = [output for output in outputs if output.output_type == "stream"]
    assert all(output.name == "stdout" for output in streams)
    assert not any(c in output.text for output in streams for c in "\r\x1b\b")
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))


def test_the_figures_of_the_notebook_are_the_saved_ones(notebook):
    assert notebook.metadata.accelerator == "GPU"  # for Colab
    names = "augmented_samples block_spectra lr_finder lr_schedule test_train_loss_accuracy misclassified_imgs"
    names = f"{names} confusion_matrix attention_maps".split()
    for shown, name in zip(pictures(notebook), names, strict=True):
        shown = matplotlib.image.imread(io.BytesIO(base64.b64decode(shown)))
        assert np.array_equal(matplotlib.image.imread(ROOT / "images" / f"{name}.png"), shown), name


def test_no_cell_assigns_a_name_that_another_cell_assigns_so_each_can_run_again(notebook):
    sources = [
        "".join(line for line in c.source.splitlines(True) if line.strip()[:1] not in "%!")
        for c in code_cells(notebook)
    ]
    names = [
        {n.id for n in ast.walk(ast.parse(s)) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
        for s in sources
    ]
    assert "model" in set.union(*names) and len(set.union(*names)) == sum(map(len, names))


def test_the_settings_stand_in_the_cell_that_papermill_changes_and_are_those_of_the_experiments(notebook):
    (cell,) = [cell for cell in code_cells(notebook) if "parameters" in cell.metadata.get("tags", [])]
    told, ours = {}, ablation.OURS
    exec(cell.source, told)
    told = [told[name] for name in ("EPOCHS", "BATCH_SIZE", "MAX_LR", "BLOCK_RATE")]
    assert told == [EPOCHS, ours.batch_size, ours.max_lr, ours.block_rate] and "import" not in cell.source


# --- the READMEs -------------------------------------------------------------------


def test_the_measured_parts_of_the_readmes_are_the_measured_ones():
    texts = parts(json.loads(NOTEBOOK.read_text(encoding="utf-8")))
    for text in (README, TABLES):
        assert fill(text, texts) == text, "run python -m experiments.readme"
    assert all(f"<!-- {name} -->" in README + TABLES for name in texts)


def test_a_notebook_that_ran_on_the_stand_in_fills_no_readme():
    text = NOTEBOOK.read_text(encoding="utf-8").replace("EPOCH: 1 ", "[synthetic stand-in]\\nEPOCH: 1 ")
    with pytest.raises(ValueError, match="no log of 24 epochs on CIFAR-10"):
        parts(json.loads(text))


@pytest.mark.parametrize("readme", READMES, ids=lambda path: path.parent.name)
def test_every_relative_link_and_image_of_a_readme_exists_and_images_have_alt_texts(readme):
    text = readme.read_text(encoding="utf-8")
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", text)
    links += [("!", alt, path) for path, alt in re.findall(r'<img src="(\S+)".* alt="(.*)">', text)]
    assert len(links) > 10
    for image, alt, target in links:
        assert not image or len(alt) > 5, target
        path, _, heading = target.partition("#")
        if not target.startswith("http"):
            assert (readme.parent / path).exists(), target
            linked = (readme.parent / path).read_text(encoding="utf-8") if path.endswith(".md") else text
            headings = [h.lower().replace(" ", "-") for h in re.findall(r"^#+ (.*)", linked, re.MULTILINE)]
            assert not heading or heading in headings, target


def test_ci_runs_exactly_the_readmes_test_command():
    (command,) = re.findall(r"^(python3 -m venv .*pytest --nbval)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")


def test_the_numbers_of_the_prose_are_those_of_the_tables(notebook):
    rows, curves = read(ablation.CSV), read(ablation.CURVES)
    mean = {row["name"]: statistics.mean(values(rows, row["name"])) for row in rows}
    ours, other = (values(curves, name) for name in ablation.INITIALISATIONS)
    epochs = next(epoch for epoch, accuracy in enumerate(other, start=1) if accuracy >= ours[0])
    low, *_, high = sorted(mean["ours"] - run for run in values(rows, "ours with PyTorch's initialisation"))
    lost, next_best, _ = sorted(values(rows, "+ batch 128, max_lr 0.01"))
    plain, initialised = mean["+ attention per image"], mean["our initialisation, plain stem"]
    page = "".join(cell.source for cell in notebook.cells)
    needs = f"needs {epochs} epochs to reach the accuracy that ours has after one"
    assert f"{needs}, and it ends {low:.0f} to {high:.0f} points lower" in README and needs in page
    assert f"one of three runs ended {next_best - lost:.0f} points below the others" in page
    assert f"takes the plain stem from {plain:.0f} to {initialised:.0f} % (last row)" in TABLES


def test_no_trial_leads_by_more_than_its_standard_error_over_fresh_seeds():
    rows = read(tuning.CSV)
    usual = values(rows, "none")
    assert f"The standard deviation of our eight runs is {statistics.stdev(usual):.2f}." in TABLES
    better = {row["name"] for row in rows if row["seed"] == "1" and float(row["accuracy"]) > usual[0] + 1}
    assert len(better) == 4
    for name in better:
        fresh = [row for row in rows if 2 <= int(row["seed"]) <= len(values(rows, name))]
        lead, error = map(float, gap(fresh, name, "none").replace("−", "-").split(" ± "))
        assert abs(lead) < error, name


def test_the_collapses_are_what_the_tables_say():
    rows = read(collapse.CSV)
    usual, high, higher, highest, fifth, full = (
        values(rows, name) for name in dict.fromkeys(s.name for s, _ in collapse.JOBS)
    )
    worst = min(usual)
    assert len(usual) == 10 and worst > 70
    assert abs(statistics.mean(high) - statistics.mean(usual)) < 0.5
    assert sum(run < worst - 1 for run in higher) == sum(run < worst - 1 for run in fifth) == 2
    assert all(COLLAPSED + CHANCE < run < worst - 15 for run in highest) and max(full) < COLLAPSED


def test_ours_passes_the_published_solution_in_its_first_epoch_and_the_best_in_its_second():
    first, second, *_ = map(float, re.findall(r"\d+/10000 \(([\d.]+)%\)", README))
    field = sorted(float(row["accuracy"]) for row in read(published.CSV))
    assert first > 40.19 and second > field[-1] and len(field) == 26
    assert sum(abs(value - CHANCE) < 1 for value in field) == 9


def test_the_readmes_snippet_names_the_class_of_a_picture(tmp_path, monkeypatch, capsys):
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    PIL.Image.effect_mandelbrot((70, 50), (-2, -1, 1, 1), 20).save(tmp_path / "picture.jpg")
    (tmp_path / "ultimus.pt").write_bytes((ROOT / "ultimus.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    lines = capsys.readouterr().out.splitlines()
    names, shares = zip(*(re.fullmatch(r"(\w+): (\d+\.\d)%", line).groups() for line in lines))
    assert len(set(names) & set(utils.CLASSES)) == 3 and sum(map(float, shares)) <= 100.1
    assert sorted(map(float, shares), reverse=True) == list(map(float, shares))


def test_the_committed_weights_belong_to_the_network_that_the_readme_lists():
    model = UltimusNet().eval()
    model.load_state_dict(torch.load(ROOT / "ultimus.pt", weights_only=True))
    table = README[README.index("| part |") : README.index("Each image has its own")]
    rows = re.findall(r"^\| .* \| (\d+ x \d+ x \d+|\d+) \| (?:4 x )?([\d,]+) \|$", table, re.MULTILINE)
    x, expected = torch.zeros(1, 3, 32, 32), []
    for part in model.stem:
        x = part(x)
        expected.append((" x ".join(map(str, x.shape[1:])), part))
    expected += [("48", model.blocks[0]), ("10", model.fc)]
    assert rows == [(shape, f"{sum(p.numel() for p in part.parameters()):,}") for shape, part in expected]


# --- the set-up on Colab, on Kaggle and elsewhere --------------------------------------

DRIVER = """
import importlib.util, json, os, sys, types
from IPython.core.interactiveshell import InteractiveShell

place, times, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
if place == "colab":
    sys.modules["google.colab"] = types.ModuleType("google.colab")
if place == "kaggle":
    os.environ["KAGGLE_KERNEL_RUN_TYPE"] = "Interactive"
shell, installs = InteractiveShell.instance(), []
shell.register_magic_function(lambda line: installs.append(line), magic_name="pip")
for _ in range(times):
    error = shell.run_cell(source).error_in_exec
files = [getattr(sys.modules.get(name), "__file__", None) for name in ("model9", "utils")]
print()
print(json.dumps({"installs": installs, "error": error and repr(error), "files": files}))
"""


def set_up(notebook, folder, repository, place="colab", times=1, path=""):
    """Run the set-up in ``folder`` as in ``place``; the address leads to ``repository``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    git = ["url.file://" + str(repository) + ".insteadOf", "https://github.com/shreyash-99/EVA8"]
    environment |= dict(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0=git[0], GIT_CONFIG_VALUE_0=git[1], PYTHONPATH=path)
    command = [sys.executable, "-c", DRIVER, place, str(times), code_cells(notebook)[0].source]
    environment |= {"HOME": str(folder), "IPYTHONDIR": str(folder / ".ipython")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


OURS, THEIRS = "output_folder = Ultimus = UltimusNet = None\n", "Ultimus = theirs\n"  # an error of theirs


def put(folder, text):
    """A model9.py and a utils.py into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model9.py", "utils.py"):
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def repository(folder, text):
    """What stands at the address."""
    put(folder / "Session_9_Assignment", text)
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.com", "-C", folder]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "hand in"]):
        subprocess.run([*git, *command], check=True)
    return folder


@pytest.fixture
def content(tmp_path):
    """A working folder with a folder EVA8 and a utils.py of the user's own."""
    put(tmp_path / "content" / "EVA8" / "Session_9_Assignment", THEIRS)
    (tmp_path / "content" / "utils.py").write_text(THEIRS, encoding="utf-8")
    return tmp_path / "content"


@pytest.mark.parametrize("place, times", [("colab", 2), ("kaggle", 1)])
def test_alone_on_colab_or_kaggle_the_notebook_fetches_its_files_and_uses_no_others(
    notebook, tmp_path, content, place, times
):
    address, folder = repository(tmp_path / "EVA8", OURS), content / "ultimus-cifar10" / "Session_9_Assignment"
    for _ in range(times):  # the second time after a restart
        result = set_up(notebook, content, address, place, times)
        assert result["error"] is None and result["files"] == [str(folder / "model9.py"), str(folder / "utils.py")]
        assert result["installs"] == times * ["install -q --no-deps torchsummary torch-lr-finder"]


def test_beside_its_files_the_notebook_fetches_and_installs_nothing(notebook, tmp_path):
    folder, elsewhere = put(tmp_path / "ours", OURS), put(tmp_path / "path", THEIRS)
    result = set_up(notebook, folder, "nowhere", "elsewhere", path=str(elsewhere))
    assert result == {
        "error": None,
        "installs": [],
        "files": [str(folder / f"{name}.py") for name in ("model9", "utils")],
    }


@pytest.mark.parametrize(
    "address, place", [("EVA8", "colab"), ("nowhere", "colab"), ("broken", "kaggle"), ("EVA8", "elsewhere")]
)
def test_without_its_files_the_set_up_says_what_to_do_and_that_helps(notebook, tmp_path, content, address, place):
    repository(tmp_path / "EVA8", THEIRS)
    if address == "broken":
        (content / "ultimus-cifar10").mkdir()
    result = set_up(notebook, content, tmp_path / address, place)
    assert f"model9.py and utils.py of this notebook in {content}. Put them there, then run" in result["error"]
    put(content, OURS)
    assert set_up(notebook, content, tmp_path / address, place)["error"] is None


# --- all cells -----------------------------------------------------------------------

SMALL = """
images, labels = torch.randint(0, 256, (96, 3, 32, 32), dtype=torch.uint8), torch.arange(96) % 10
utils.load_cifar10 = lambda: utils.Images(images, labels, images, labels)
EPOCHS, BATCH_SIZE = 2, 16
"""


def test_run_all_shows_and_saves_every_figure_and_the_training_gives_the_same_log_again(
    notebook, tmp_path, monkeypatch
):
    monkeypatch.setenv("MPLBACKEND", "agg")  # as clusters and container images set it
    small = copy.deepcopy(notebook)
    small.cells = code_cells(small)
    (settings,) = [i for i, cell in enumerate(small.cells) if "parameters" in cell.metadata.get("tags", [])]
    small.cells[settings].source += SMALL
    small.cells.append(next(copy.deepcopy(cell) for cell in small.cells if "utils.fit(" in cell.source))
    NotebookClient(small, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    assert len(pictures(small)) == len(list((tmp_path / "images").iterdir())) == 8
    assert (tmp_path / "ultimus.pt").exists()
    logs = ["".join(o.text for o in cell.outputs) for cell in small.cells if "utils.fit(" in cell.source]
    first, second = (re.findall(r"Test set: .*", log) for log in logs)
    assert first == second and len(first) == 2


SAVE = "import os, pathlib; folder = pathlib.Path(os.environ['ULTIMUS_OUTPUT']{}); folder.mkdir(exist_ok=True);"
SAVE += "(folder / 'ultimus.pt').write_text('new'); print('EPOCH: 1')"


@pytest.mark.parametrize(
    "source, ending, folder",
    [
        (SAVE.format(""), "This was a run on CIFAR-10.", ""),
        (SAVE.format(", 'synthetic stand-in'"), "This was no run on CIFAR-10.", utils.STAND_IN),
        (SAVE.format("") + "; 1 / 0", "ZeroDivisionError", None),
        (
            SAVE.format("") + "; import signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)",
            "KeyboardInterrupt",
            None,
        ),
    ],
)
def test_the_main_command_shows_the_log_and_changes_only_what_its_run_may_change(
    tmp_path, monkeypatch, capsys, source, ending, folder
):
    filled = []
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "NOTEBOOK", tmp_path / "notebook.ipynb")
    monkeypatch.setattr(readme, "main", lambda: filled.append(True))
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source)]), readme.NOTEBOOK)
    before = readme.NOTEBOOK.read_bytes()
    try:
        run.main()
        text = capsys.readouterr().out
    except SystemExit as error:
        text = capsys.readouterr().out + error.code
    assert text.startswith("EPOCH: 1\n") and ending in text
    assert (readme.NOTEBOOK.read_bytes() == before) is (folder != "") and filled == [True] * (folder == "")
    written = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()}
    results = {} if folder is None else {f"{folder}/{name}".lstrip("/") for name in ("notebook.ipynb", "ultimus.pt")}
    assert written == {"notebook.ipynb", *results}
