"""What a user relies on in the notebook and the READMEs, on this machine, Colab and Kaggle."""

import base64
import contextlib
import io
import os
import re
import subprocess
import sys

import nbformat
import PIL.Image
import pytest

import utils
from experiments import ablation, readme, run
from experiments.harness import EPOCHS
from experiments.readme import NOTEBOOK, READMES, ROOT

PAGES = [path.read_text("utf-8") for path in READMES]


@pytest.fixture
def notebook():
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.fixture
def cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.fixture
def outputs(cells):
    return [output for cell in cells for output in cell.outputs]


def test_every_cell_was_executed_in_order(cells):
    counts = [cell.execution_count for cell in cells]
    assert counts == [*range(1, len(cells) + 1)]


def test_no_output_is_an_error_a_warning_or_a_bar_that_overwrites_itself(outputs):
    for output in outputs:
        assert output.output_type != "error"
        assert output.get("name") != "stderr"
        assert not re.search("[\r\x1b\b]", output.get("text", ""))


def test_each_figure_of_the_notebook_is_a_saved_one_with_an_alternative_text(outputs):
    files = [path.read_bytes() for path in ROOT.glob("images/*.png")]
    figures = [output for output in outputs if "image/png" in output.get("data", {})]
    assert figures
    for figure in figures:
        assert base64.b64decode(figure.data["image/png"]) in files
        assert figure.metadata["image/png"]["alt"]


def test_the_settings_of_the_notebook_are_those_of_the_experiments(cells):
    (source,) = [cell.source for cell in cells if "tags" in cell.metadata]  # for papermill
    settings, ours = {}, ablation.OURS
    exec(source, settings)
    rates = settings["MAX_LR"], settings["BLOCK_RATE"]
    assert rates == (ours.max_lr, ours.block_rate)
    assert settings["BATCH_SIZE"] == ours.batch_size
    assert settings["EPOCHS"] == EPOCHS


def test_the_pages_have_each_measured_part_as_it_was_measured(notebook):
    texts = readme.parts(notebook)
    for name in texts:
        assert f"<!-- {name} -->" in "".join(PAGES)
    for page in [*PAGES, *(cell.source for cell in notebook.cells)]:
        assert readme.fill(page, texts) == page, "run python -m experiments.readme"


def test_ci_runs_exactly_the_readmes_test_command():
    (command,) = re.findall("^python3 -m venv .*pytest --nbval$", PAGES[0], re.MULTILINE)
    for path in (".ci/run", ".github/workflows/tests.yml"):
        assert f"{command}\n" in (ROOT / path).read_text("utf-8")


@pytest.mark.parametrize("path", READMES)
def test_the_files_that_a_readme_links_exist(path):
    page = path.read_text("utf-8")
    for link in re.findall(r'(?:\]\(|src=")(?!http)([^)"#]+)', page):
        assert (path.parent / link).exists()


def test_the_snippets_of_the_readme_run(small, tmp_path, monkeypatch):
    PIL.Image.new("RGB", (70, 50)).save(tmp_path / "picture.jpg")
    (tmp_path / "ultimus.pt").symlink_to(ROOT / "ultimus.pt")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(utils, "load_cifar10", lambda: utils.Data(*[small[1].images] * 4))
    for snippet in re.findall("```python\n(.*?)```", PAGES[0], re.DOTALL):
        exec(snippet, {})


OURS, THEIRS = "__getattr__ = str\n", "an error of theirs\n"  # ours has every name
INSTALLS = 2 * "install -q --no-deps torchsummary torch-lr-finder\n"
PLACES = {  # what tells the set-up where it is
    "colab": "import sys; sys.modules['google.colab'] = sys",
    "kaggle": "import os; os.environ['KAGGLE_KERNEL_RUN_TYPE'] = 'Interactive'",
    "elsewhere": "",
}
LINES = """
get_ipython().register_magic_function(print, magic_name='pip')
{0}
{1}
{1}
import model9, utils
print({{os.path.relpath(os.path.dirname(m.__file__)) for m in (model9, utils)}})
"""
ENVIRONMENT = {  # without the user's settings
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_COUNT": "1",
    "GIT_CONFIG_VALUE_0": "https://github.com/shreyash-99/EVA8",
}


@pytest.fixture
def content(tmp_path):
    """A working folder with a file of the user's own. In a URL its name would have a space."""
    content = tmp_path / "a%20b"
    (content / "address" / "Session_9_Assignment").mkdir(parents=True)
    (content / "utils.py").write_text(THEIRS)
    return content


def set_up(cells, content, place, published):
    """Run the set-up twice as in ``place``; at the notebook's address are files ``published``.

    What it installs, and an error or the folder of its files.
    """
    address = content / "address"
    environment = ENVIRONMENT | {
        "HOME": str(content),
        "GIT_CONFIG_KEY_0": f"url.{address.as_uri()}.insteadOf",
    }
    options = dict(env=environment, capture_output=True, text=True)
    for name in ("model9.py", "utils.py"):
        (address / "Session_9_Assignment" / name).write_text(published)
    git = "git init -q; git add -A; git -c user.name=a -c user.email=a@b.c commit -qm a"
    subprocess.run(git, shell=True, cwd=address, **options)
    command = LINES.format(PLACES[place], cells[0].source)
    shell = [sys.executable, "-m", "IPython", "-c", command]
    return subprocess.run(shell, cwd=content, **options).stdout


@pytest.mark.parametrize("place", ["colab", "kaggle"])
def test_alone_on_colab_or_kaggle_the_notebook_fetches_its_files(cells, content, place):
    for _ in range(2):  # the second time after a restart
        printed = set_up(cells, content, place, OURS)
        assert printed == INSTALLS + "{'ultimus-cifar10/Session_9_Assignment'}\n"


@pytest.mark.parametrize("place", ["kaggle", "elsewhere"])
def test_without_its_files_the_notebook_asks_for_them(cells, content, place):
    asked = f"model9.py and utils.py of this notebook in {content}. Put them there, then run"
    assert asked in set_up(cells, content, place, THEIRS)


SAVE = """
import os, pathlib, signal, time
pathlib.Path(os.environ["ULTIMUS_OUTPUT"], "ultimus.pt").write_text("new")
"""
STOP = "os.kill(os.getppid(), signal.{}); time.sleep(9)"


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run a notebook of one cell; the files that are then in its folder, and its outputs."""

    def start(then):
        cell = nbformat.v4.new_code_cell(SAVE + then)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), readme.NOTEBOOK)
        with contextlib.suppress(SystemExit):
            run.main()
        (cell,) = nbformat.read(readme.NOTEBOOK, as_version=4).cells
        return {path.name for path in tmp_path.iterdir()}, len(cell.outputs)

    # A terminal without the bar's characters:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "NOTEBOOK", tmp_path / "a.ipynb")
    monkeypatch.setattr(readme, "main", lambda: None)
    monkeypatch.setenv("IPYTHONDIR", "")  # a run sets it
    return start


def test_a_run_on_cifar10_renews_the_notebook_and_the_weights(start):
    assert start("print('█')") == ({"a.ipynb", "ultimus.pt"}, 1)


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_stopped_run_changes_nothing(start, name):
    assert start(STOP.format(name)) == ({"a.ipynb"}, 0)
