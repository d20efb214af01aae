"""What a user relies on in the notebook and the READMEs, on this machine, on Colab and on
Kaggle."""

import base64
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
from experiments.readme import NOTEBOOK, READMES, ROOT, fill, parts

README, TABLES = (path.read_text(encoding="utf-8") for path in READMES)


@pytest.fixture
def cells():
    return [
        cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"
    ]


def test_every_cell_was_executed_in_order_without_error_stream_widget_or_escape_and_its_figure_is_the_saved_one(
    cells,
):
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    pictures = []
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error" and output.get("name", "stdout") == "stdout"
        assert not any(c in output.get("text", "") for c in "\r\x1b\b")
        assert not any("widget" in kind for kind in output.get("data", {}))
        pictures += (
            [base64.b64decode(output.data["image/png"])]
            if "image/png" in output.get("data", {})
            else []
        )
    names = "augmented_samples block_spectra lr_finder lr_schedule test_train_loss_accuracy misclassified_imgs"
    for shown, name in zip(
        pictures, f"{names} confusion_matrix attention_maps".split(), strict=True
    ):
        assert shown == (ROOT / "images" / f"{name}.png").read_bytes(), name


def test_the_settings_of_the_notebook_are_those_of_the_experiments(cells):
    (cell,) = [
        cell for cell in cells if "parameters" in cell.metadata.get("tags", [])
    ]  # that papermill changes
    namespace, ours = {}, ablation.OURS
    exec(cell.source, namespace)
    expected = dict(
        EPOCHS=EPOCHS, BATCH_SIZE=ours.batch_size, MAX_LR=ours.max_lr, BLOCK_RATE=ours.block_rate
    )
    assert namespace | expected == namespace and "import" not in cell.source


def test_the_measured_parts_of_the_pages_are_those_of_a_run_on_cifar10_and_its_log_has_our_rates():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert notebook.metadata["accelerator"] == "GPU"  # for Colab
    texts, pages = parts(notebook), [README, TABLES, *(cell.source for cell in notebook.cells)]
    assert [fill(page, texts) for page in pages] == pages, "run python -m experiments.readme"
    assert all(f"<!-- {name} -->" in README + TABLES for name in texts)
    text = nbformat.writes(notebook)
    assert (
        "50,000 training and 10,000 test images" in text and "391 training steps per epoch" in text
    )
    rates, _ = (
        utils.plot_schedule(EPOCHS, 391, ablation.OURS.max_lr, ablation.OURS.block_rate)
        .axes[0]
        .lines
    )
    logged = [
        float(rate) for rate in re.findall(r"\(LR: (\S+)\)\nBatch_id=390 .* 391/391 ", texts["log"])
    ]
    assert logged == pytest.approx(rates.get_ydata()[::391], abs=1e-12)
    for wrong in ("EPOCH: 1 ", "[synthetic stand-in]\\nEPOCH: 1 "), ("EPOCH: 1 ", "EPOCH: 0 "):
        with pytest.raises(ValueError, match="no log of 24 epochs on CIFAR-10"):
            parts(nbformat.reads(text.replace(*wrong), as_version=4))


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_every_relative_link_and_image_of_a_readme_exists_and_images_have_alt_texts(path):
    page = path.read_text(encoding="utf-8")
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", page)
    links += [
        ("!", alt, target) for target, alt in re.findall(r'<img src="(\S+)".* alt="(.*)">', page)
    ]
    assert len(links) > 10 and all(len(alt) > 5 for image, alt, _ in links if image)
    for name, _, heading in (
        target.partition("#") for _, _, target in links if not target.startswith("http")
    ):
        linked = path.parent / name if name else path
        headings = (
            re.findall(r"^#+ (.*)", linked.read_text("utf-8"), re.MULTILINE) if heading else []
        )
        assert linked.exists() and (
            not heading or heading in [h.lower().replace(" ", "-") for h in headings]
        ), name


def test_ci_runs_exactly_the_readmes_test_command():
    (command,) = re.findall(r"^(python3 -m venv .*pytest --nbval)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")


def test_the_readmes_snippet_names_the_class_of_a_picture_with_the_committed_weights(
    tmp_path, monkeypatch, capsys
):
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    PIL.Image.effect_mandelbrot((70, 50), (-2, -1, 1, 1), 20).save(tmp_path / "picture.jpg")
    (tmp_path / "ultimus.pt").write_bytes((ROOT / "ultimus.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    names, shares = zip(*re.findall(r"^(\w+): (\d+\.\d)%$", capsys.readouterr().out, re.MULTILINE))
    assert (
        len(names) == 3
        and {*names} < {*utils.CLASSES}
        and sorted(map(float, shares))[::-1] == [*map(float, shares)]
    )


OURS, THEIRS = (
    "Residual = output_folder = Ultimus = UltimusNet = None\n",
    "Ultimus = theirs\n",
)  # an error of theirs
INSTALLS = 2 * "install -q --no-deps torchsummary torch-lr-finder\n"
PLACES = {  # what tells the set-up where it is
    "colab": "import sys; sys.modules['google.colab'] = sys",
    "kaggle": "import os; os.environ['KAGGLE_KERNEL_RUN_TYPE'] = 'Interactive'",
    "elsewhere": "get_ipython().register_magic_function(print, magic_name='pip')",
}


def set_up(cells, folder, address, place):
    """Run the set-up twice as in ``place``, with ``address`` for its own. What it installs, an
    error, its folder."""
    lines = [PLACES["elsewhere"], PLACES[place], cells[0].source, cells[0].source]
    lines += [
        "import model9, utils; print({os.path.relpath(os.path.dirname(m.__file__)) for m in (model9, utils)})"
    ]
    environment = os.environ | dict(
        HOME=str(folder), IPYTHONDIR=str(folder / ".ipython"), GIT_CONFIG_COUNT="1"
    )
    environment["PYTHONPATH"] = str(folder / "EVA8" / "Session_9_Assignment")
    environment["GIT_CONFIG_KEY_0"] = f"url.file://{address}.insteadOf"
    environment["GIT_CONFIG_VALUE_0"] = "https://github.com/shreyash-99/EVA8"
    command = [sys.executable, "-m", "IPython", "-c", "\n".join(lines)]
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True
    ).stdout


def put(folder, text, names=("model9.py", "utils.py")):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_text(text, encoding="utf-8")


def prepare(folder, text):
    """In ``folder``, what stands at the address, and a working folder with an EVA8 and a utils.py
    of the user's own."""
    put(folder / "address" / "Session_9_Assignment", text)
    git = "git init -q && git add -A && git -c user.name=a -c user.email=a@example.com commit -q -m 'hand in'"
    subprocess.run(git, cwd=folder / "address", shell=True, check=True)
    put(folder / "content" / "EVA8" / "Session_9_Assignment", THEIRS)
    put(folder / "content", THEIRS, ["utils.py"])
    return folder / "content"


@pytest.mark.parametrize("place", ["colab", "kaggle"])
def test_alone_on_colab_or_kaggle_the_notebook_fetches_its_files_and_uses_no_others(
    cells, tmp_path, place
):
    content = prepare(tmp_path, OURS)
    for _ in range(2):  # the second time after a restart
        printed = set_up(cells, content, tmp_path / "address", place)
        assert printed == INSTALLS + "{'ultimus-cifar10/Session_9_Assignment'}\n"


@pytest.mark.parametrize("place, bad", [("colab", "none"), ("kaggle", ""), ("elsewhere", "")])
def test_without_its_files_the_set_up_says_what_to_do_and_beside_them_it_uses_no_others(
    cells, tmp_path, place, bad
):
    content = prepare(tmp_path, THEIRS)
    address = bad or tmp_path / "address"
    error = set_up(cells, content, address, place)
    assert (
        f"model9.py and utils.py of this notebook in {content}. Put them there, then run" in error
    )
    put(content, OURS)
    assert set_up(cells, content, address, place) == INSTALLS * (place != "elsewhere") + "{'.'}\n"


ASIDE, FILES = "run of the notebook as it was", ("notebook.ipynb", "ultimus.pt")
SAVE = """
import os, pathlib, signal, time
folder = pathlib.Path(os.environ["ULTIMUS_OUTPUT"], "{}")
folder.mkdir(exist_ok=True)
(folder / "ultimus.pt").write_text("new")
print("EPOCH: 1")
"""


@pytest.mark.parametrize(
    "folder, then, ending, changed",
    [
        ("", "", "This was a run on CIFAR-10.", {*FILES, "README.md"}),
        (utils.STAND_IN, "", "This was no run", {f"{utils.STAND_IN}/{name}" for name in FILES}),
        (
            "",
            "open('notebook.ipynb', 'a').write('\\n')",
            f"{ASIDE}.\n",
            {f"{ASIDE}/{n}" for n in FILES} | {FILES[0]},
        ),
        ("", "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)", "KeyboardInterrupt", set()),
    ],
)
def test_the_main_command_changes_only_what_its_run_may(
    tmp_path, monkeypatch, capsys, folder, then, ending, changed
):
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    monkeypatch.setattr(readme, "NOTEBOOK", tmp_path / "notebook.ipynb")
    monkeypatch.setattr(readme, "main", lambda: (tmp_path / "README.md").touch())
    cell = nbformat.v4.new_code_cell(SAVE.format(folder) + then)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), readme.NOTEBOOK)
    before = readme.NOTEBOOK.read_bytes()
    try:
        run.main()
    except SystemExit as error:
        print(error)
    text = capsys.readouterr().out
    assert text.startswith("EPOCH: 1\n") and ending in text
    written = [
        path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() != before
    ]
    assert {path.relative_to(tmp_path).as_posix() for path in written} == changed
