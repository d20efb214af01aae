"""What a user relies on in the notebook and the READMEs, on this machine, Colab and Kaggle."""

import base64
import io
import os
import re
import subprocess
import sys

import nbformat
import PIL.Image
import pytest

import utils
from experiments import ablation, published, readme, run
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
    chosen = [settings[name] for name in ("EPOCHS", "BATCH_SIZE", "MAX_LR", "BLOCK_RATE")]
    assert chosen == [EPOCHS, ours.batch_size, ours.max_lr, ours.block_rate]


def test_a_renewal_of_the_pages_would_make_them_as_they_are(notebook, tmp_path, monkeypatch):
    pages = [path.read_text("utf-8") for path in (NOTEBOOK, *READMES)]
    for name in readme.parts(notebook):
        assert f"<!-- {name} -->" in str(pages)
    *copies, drawn = [tmp_path / name for name in "abcd"]
    for copy, page in zip(copies, pages):
        copy.write_text(page.replace("---:", "old"), "utf-8")
    monkeypatch.setattr(readme, "NOTEBOOK", copies[0])
    monkeypatch.setattr(readme, "READMES", copies[1:])
    monkeypatch.setattr(published, "draw", drawn.touch)
    readme.main()
    assert pages == [copy.read_text("utf-8") for copy in copies], "run python -m experiments.readme"
    assert drawn.exists()


def test_a_log_of_the_stand_in_or_of_fewer_epochs_reaches_no_page(notebook, cells):
    ((output, *_),) = [cell.outputs for cell in cells if "utils.fit(" in cell.source]
    for text in (f"[{utils.STAND_IN}]\n{output.text}", output.text[:-200]):
        output.text = text
        with pytest.raises(ValueError, match="no log of 24 epochs on CIFAR-10"):
            readme.parts(notebook)


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
folder = pathlib.Path(os.environ["ULTIMUS_OUTPUT"])
(folder / "ultimus.pt").write_text("new")
"""


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Run a notebook of one cell; the files that are then in its folder, its outputs, the log."""

    def start(then):
        # A terminal without the bar's characters:
        monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
        cell = nbformat.v4.new_code_cell(SAVE + then)
        nbformat.write(nbformat.v4.new_notebook(cells=[cell]), readme.NOTEBOOK)
        try:
            run.main()
        except SystemExit as error:
            print("exit", error)
        files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*")}
        sys.stdout.seek(0)
        outputs = nbformat.read(readme.NOTEBOOK, as_version=4).cells[0].outputs
        return files, len(outputs), sys.stdout.read()

    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "NOTEBOOK", tmp_path / "a.ipynb")
    monkeypatch.setattr(readme, "main", lambda: print("renewed"))
    monkeypatch.setenv("IPYTHONDIR", "")  # a run sets it
    monkeypatch.delenv("ULTIMUS_OUTPUT")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run.signal, "getsignal", str)  # nohup ignores one, the background another
    return start


def test_a_run_on_cifar10_renews_the_notebook_and_the_weights(start):
    files, outputs, log = start("print('█')")
    assert (files, outputs) == ({"a.ipynb", "ultimus.pt"}, 1)
    assert "?\nThis was a run on CIFAR-10" in log and "renewed" in log


def test_a_run_for_another_folder_leaves_the_repository_as_it_is(start, tmp_path, monkeypatch):
    monkeypatch.setenv("ULTIMUS_OUTPUT", str(tmp_path / "other"))
    files, outputs, log = start("pathlib.Path('a.ipynb').open('a').write(' ')")
    assert (files, outputs) == ({"a.ipynb", "other/a.ipynb", "other/ultimus.pt"}, 0)
    assert "renewed" not in log


def test_a_run_on_the_stand_in_has_a_folder_of_its_own(start):
    place = "folder / 'synthetic stand-in'"
    files, outputs, log = start(
        f"({place}).mkdir(); (folder / 'ultimus.pt').rename({place} / 'u.pt')"
    )
    own = {"synthetic stand-in/a.ipynb", "synthetic stand-in/u.pt"}
    assert (files, outputs) == ({"a.ipynb", *own}, 0)
    assert "/synthetic stand-in, and only there" in log


def test_a_notebook_that_was_changed_meanwhile_stays_as_it_is(start):
    files, outputs, log = start("pathlib.Path('a.ipynb').open('a').write(' '); print()")
    own = {f"run of the notebook as it was/{name}" for name in ("a.ipynb", "ultimus.pt")}
    assert (files, outputs) == ({"a.ipynb", *own}, 0)
    assert "It stays as it is" in log


STOPS = [
    f"os.kill(os.getppid(), signal.{name}); time.sleep(9)"
    for name in ("SIGINT", "SIGTERM", "SIGHUP")
]


@pytest.mark.parametrize("then", [*STOPS, "1 / 0", "os._exit(1)"])  # the last: out of memory
def test_a_run_that_fails_or_is_stopped_changes_nothing_and_says_so(start, then):
    files, outputs, log = start(then)
    assert (files, outputs) == ({"a.ipynb"}, 0)
    assert re.search("exit .+\nNothing was changed", log, re.DOTALL)
