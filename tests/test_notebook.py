"""What a user relies on in the notebook and the READMEs, on this machine, on Colab and on Kaggle."""

import ast
import base64
import json
import math
import os
import re
import subprocess
import sys

import nbformat
import PIL.Image
import pytest
import torch
from nbclient import NotebookClient

import utils
from experiments import ablation, heads, published, readme, run, stall, tuning
from experiments.harness import EPOCHS, read, values
from experiments.readme import NOTEBOOK, READMES, ROOT, fill, parts
from model9 import UltimusNet

README, TABLES = (path.read_text(encoding="utf-8") for path in READMES)


@pytest.fixture
def cells():
    return [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]


def settings(cells):
    return next(cell for cell in cells if "parameters" in cell.metadata.get("tags", []))


def pictures(cells):
    outputs = [output.get("data", {}) for cell in cells for output in cell.outputs]
    return [base64.b64decode(data["image/png"]) for data in outputs if "image/png" in data]


def test_every_cell_was_executed_in_order_without_error_stream_widget_or_escape_and_its_figure_is_the_saved_one(cells):
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for output in (output for cell in cells for output in cell.outputs):
        assert output.output_type != "error" and output.get("name", "stdout") == "stdout"
        assert not any(c in output.get("text", "") for c in "\r\x1b\b")
        assert not any("widget" in kind for kind in output.get("data", {}))
    names = "augmented_samples block_spectra lr_finder lr_schedule test_train_loss_accuracy misclassified_imgs"
    for shown, name in zip(pictures(cells), f"{names} confusion_matrix attention_maps".split(), strict=True):
        assert shown == (ROOT / "images" / f"{name}.png").read_bytes(), name


def test_no_cell_assigns_anothers_name_so_each_can_run_again_and_the_settings_are_those_of_the_experiments(cells):
    names = []
    for cell in cells:
        source = "".join(line for line in cell.source.splitlines(True) if line.strip()[:1] not in "%!")
        nodes = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]
        names += {node.id for node in nodes if isinstance(node.ctx, ast.Store)}
    assert "model" in names and len(set(names)) == len(names)
    told, ours = {}, ablation.OURS
    exec(settings(cells).source, told)  # the cell that papermill changes
    expected = dict(EPOCHS=EPOCHS, BATCH_SIZE=ours.batch_size, MAX_LR=ours.max_lr, BLOCK_RATE=ours.block_rate)
    assert told | expected == told and "import" not in settings(cells).source


def test_the_measured_parts_of_the_readmes_are_those_of_a_run_on_cifar10():
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert json.loads(text)["metadata"]["accelerator"] == "GPU"  # for Colab
    texts = parts(json.loads(text))
    assert [fill(page, texts) for page in (README, TABLES)] == [README, TABLES], "run python -m experiments.readme"
    assert all(f"<!-- {name} -->" in README + TABLES for name in texts)
    with pytest.raises(ValueError, match="no log of 24 epochs on CIFAR-10"):
        parts(json.loads(text.replace("EPOCH: 1 ", "[synthetic stand-in]\\nEPOCH: 1 ")))


@pytest.mark.parametrize("path", READMES, ids=lambda path: path.parent.name)
def test_every_relative_link_and_image_of_a_readme_exists_and_images_have_alt_texts(path):
    page = path.read_text(encoding="utf-8")
    links = re.findall(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", page)
    links += [("!", alt, target) for target, alt in re.findall(r'<img src="(\S+)".* alt="(.*)">', page)]
    assert len(links) > 10
    for image, alt, target in links:
        assert not image or len(alt) > 5, target
        if not target.startswith("http"):
            name, _, heading = target.partition("#")
            linked = path.parent / name if name else path
            assert linked.exists(), target
            headings = re.findall(r"^#+ (.*)", linked.read_text(encoding="utf-8"), re.MULTILINE) if heading else []
            assert not heading or heading in [h.lower().replace(" ", "-") for h in headings], target


def test_ci_runs_exactly_the_readmes_test_command():
    (command,) = re.findall(r"^(python3 -m venv .*pytest --nbval)$", README, re.MULTILINE)
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()
    assert command in (ROOT / ".github" / "workflows" / "tests.yml").read_text(encoding="utf-8")


def test_the_numbers_of_the_prose_are_those_of_the_tables():
    rows, stalls, page = read(ablation.CSV), read(stall.CSV), NOTEBOOK.read_text(encoding="utf-8")
    whole, weights, root, softmax, rest = readme.factors(stalls)
    assert weights * root * softmax == pytest.approx(whole, rel=0.1) and rest == pytest.approx(1, rel=0.1)
    claim = f"{weights:.0f} (weights of V and Out) x {root:.0f} (division by $\\\\sqrt 8$) x {softmax:.0f} (softmax)"
    assert claim in page and f"divides the variance by about {round(whole, -2):,.0f} " in page
    assert f"about $10^{{{-4 * math.log10(whole):.0f}}}$ of the variance remains" in page
    for name, digits in ((ablation.STALLED.name, 0), (ablation.RESIDUAL.name, 1), (ablation.OURS.name, 1)):
        assert f"| {readme.between(values(rows, name), digits)} % on the test set" in page
    lower = sorted(values(rows, ablation.PUBLISHED.name))[:2]
    assert f"The other two end at {readme.between(lower)} %" in TABLES
    shown = [row for row in read(published.CSV) if f"/{row['commit']}/{row['source']}):" in README]
    assert len(shown) == 3
    for row in shown:
        assert f" | {row['accuracy']} | {int(row['parameters']):,} | {row['epochs']} |" in README
    tried = read(tuning.CSV)
    trials = [row for row in tried if row["init"] == "default"]
    assert max(trials, key=lambda row: float(row["accuracy"]))["name"] == tuning.DEFAULT
    assert len(trials) == 6 and "One run at each of five [other rates]" in README
    assert min(values(rows, ablation.RESIDUAL.name)) > max(values(rows, "ours"))
    tenth, full = (values(tried, f"max_lr 0.03{end}") for end in ("", ", blocks at max_lr"))
    assert len(tenth) == len(full) == 3 and "all three runs collapse" in TABLES and "all three trainings" in page
    assert min(tenth) > 60 and max(full) < 20, "at three times max_lr, the full rate of the blocks collapses"
    fourth = min(values(tried, "none") + values(tried, "flips"))
    assert max(values(tried, "the network before")) < fourth and "mirror image, seven of them are" in TABLES
    assert sum(accuracy < fourth for accuracy in values(tried, "the network before", "mirrored")) == 7
    told = [readme.gap(rows, setting.name) for setting in ablation.COMPARED]
    pairs = (ablation.OURS, ablation.LINEAR), (ablation.RESIDUAL, ablation.OURS_RESIDUAL)
    told += [readme.gap(rows, one.name, other.name) for one, other in pairs]
    ours, _, residuals, default, trained, both = (difference / error for difference, error in told)
    assert ours < -2 and abs(residuals) < 1 and min(default, both) > 2, "our blocks lose, those with residuals do not"
    assert abs(trained) < 2, "our blocks and the linear map cannot be told apart"
    numbers = ablation.ONE, ablation.TWO, ablation.THREE, ablation.OURS
    counts = [readme.gap(rows, setting.name)[0] for setting in numbers]
    assert counts not in (sorted(counts), sorted(counts, reverse=True)), "each block gains, or each loses"
    pairs = (ablation.OVER_I, ablation.OURS), (ablation.MLP, ablation.BARE), (ablation.NARROW, ablation.BARE)
    for one, other in pairs:
        difference, error = readme.gap(rows, one.name, other.name)
        assert abs(difference) < error, one.name
    told = re.findall(r"([+−][\d.]+) ± ([\d.]+)", readme.worth(read(heads.CSV)))
    linear, *others = (float(difference.replace("−", "-")) / float(error) for difference, error in told)
    assert linear < -2 and max(map(abs, others)) < 1, "the linear map loses, and no other new head gains or loses"
    field, notes = zip(*((float(row["accuracy"]), row["note"]) for row in read(published.CSV)))
    assert [sum(kind in note for note in notes) for kind in ("collapse: ", "slow: ", "loss NaN")] == [3, 2, 4]
    assert "Three of the logs show a collapse, two slow learning, and of the nine at chance four end in" in TABLES
    assert f"reaches {shown[-1]['accuracy']} %, and a third of {len(field)} public" in page
    claim = r"have (\d+) to .* solution's (\d+) % at its end. After three they have (\d+) to .* the \[(\d+) others\]"
    first, theirs, third, count = map(int, re.search(claim, README).groups())
    assert first > theirs and third > max(field) and count == len(field)
    assert all(f"{count} public solutions" in text for text in (README, page)) and f"has all {count} with" in README


def test_the_readmes_snippet_names_the_class_of_a_picture_with_the_committed_weights(tmp_path, monkeypatch, capsys):
    (snippet,) = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    PIL.Image.effect_mandelbrot((70, 50), (-2, -1, 1, 1), 20).save(tmp_path / "picture.jpg")
    (tmp_path / "ultimus.pt").write_bytes((ROOT / "ultimus.pt").read_bytes())
    monkeypatch.chdir(tmp_path)
    exec(snippet, {})
    lines = dict(re.findall(r"^(\w+): (\d+\.\d)%$", capsys.readouterr().out, re.MULTILINE))
    shares = [float(lines[name]) for name in lines if name in utils.CLASSES]
    assert len(shares) == 3 and sum(shares) <= 100.1 and sorted(shares, reverse=True) == shares


def test_the_pages_tell_the_outputs_and_parameters_of_the_network():
    table = README[README.index("| part |") : README.index("Each image has its own")]
    rows = re.findall(r"^\| .* \| (\d+ x \d+ x \d+|\d+) \| (?:4 x )?([\d,]+) \|$", table, re.MULTILINE)
    model, x, outputs = UltimusNet(), torch.zeros(2, 3, 32, 32), []
    for part in model.stem:
        x = part(x)
        outputs.append(" x ".join(map(str, x.shape[1:])))
    listed = zip([*outputs, "48", "10"], [*model.stem, model.blocks[0], model.fc])
    assert rows == [(shape, f"{sum(p.numel() for p in part.parameters()):,}") for shape, part in listed]
    sizes = [sum(p.numel() for p in part.parameters()) for part in (model, model.stem, model.blocks[0], model.fc)]
    claim = "has {:,} parameters: {:,} in the convolutions, 4 x {:,} in the blocks, {} in the last layer"
    assert claim.format(*sizes) in NOTEBOOK.read_text("utf-8") and f" {sizes[0]:,} parameters, {EPOCHS} ep" in README


OURS, THEIRS = "output_folder = Ultimus = UltimusNet = None\n", "Ultimus = theirs\n"  # an error of theirs
INSTALLS = 2 * "install -q --no-deps torchsummary torch-lr-finder\n"
PLACES = {  # what tells the set-up where it is
    "colab": "import sys; sys.modules['google.colab'] = sys",
    "kaggle": "import os; os.environ['KAGGLE_KERNEL_RUN_TYPE'] = 'Interactive'",
    "elsewhere": "get_ipython().register_magic_function(print, magic_name='pip')",
}


def set_up(cells, folder, address, place):
    """Run the set-up twice as in ``place``, with ``address`` for its own. What it installs, an error, its folder."""
    lines = [PLACES["elsewhere"], PLACES[place], cells[0].source, cells[0].source]
    lines += ["import model9, utils; print({os.path.relpath(os.path.dirname(m.__file__)) for m in (model9, utils)})"]
    environment = os.environ | dict(HOME=str(folder), IPYTHONDIR=str(folder / ".ipython"), GIT_CONFIG_COUNT="1")
    environment["PYTHONPATH"] = str(folder / "EVA8" / "Session_9_Assignment")
    environment["GIT_CONFIG_KEY_0"] = f"url.file://{address}.insteadOf"
    environment["GIT_CONFIG_VALUE_0"] = "https://github.com/shreyash-99/EVA8"
    command = [sys.executable, "-m", "IPython", "-c", "\n".join(lines)]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


def put(folder, text):
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("model9.py", "utils.py"):
        (folder / name).write_text(text, encoding="utf-8")


def prepare(folder, text):
    """In ``folder``, what stands at the address, and a working folder with an EVA8 and a utils.py of the user's own."""
    put(folder / "address" / "Session_9_Assignment", text)
    git = "git init -q && git add -A && git -c user.name=a -c user.email=a@example.com commit -q -m 'hand in'"
    subprocess.run(git, cwd=folder / "address", shell=True, check=True)
    put(folder / "content" / "EVA8" / "Session_9_Assignment", THEIRS)
    (folder / "content" / "utils.py").write_text(THEIRS, encoding="utf-8")
    return folder / "content"


@pytest.mark.parametrize("place", ["colab", "kaggle"])
def test_alone_on_colab_or_kaggle_the_notebook_fetches_its_files_and_uses_no_others(cells, tmp_path, place):
    content = prepare(tmp_path, OURS)
    for _ in range(2):  # the second time after a restart
        printed = set_up(cells, content, tmp_path / "address", place)
        assert printed == INSTALLS + "{'ultimus-cifar10/Session_9_Assignment'}\n"


@pytest.mark.parametrize("place, bad", [("colab", "none"), ("colab", ""), ("kaggle", "folder"), ("elsewhere", "")])
def test_without_its_files_the_set_up_says_what_to_do_and_beside_them_it_uses_no_others(cells, tmp_path, place, bad):
    content = prepare(tmp_path, THEIRS)
    if bad == "folder":
        (content / "ultimus-cifar10").mkdir()
    address = bad or tmp_path / "address"
    error = set_up(cells, content, address, place)
    assert f"model9.py and utils.py of this notebook in {content}. Put them there, then run" in error
    put(content, OURS)
    assert set_up(cells, content, address, place) == INSTALLS * (place != "elsewhere") + "{'.'}\n"


SMALL = """
images, labels = torch.randint(0, 256, (48, 3, 32, 32), dtype=torch.uint8), torch.arange(48) % 10
utils.load_cifar10 = lambda: utils.Images(images, labels, images, labels)
EPOCHS, BATCH_SIZE = 2, 8
torch.set_num_threads(1)
"""


def test_run_all_shows_and_saves_every_figure_and_the_training_gives_the_same_log_again(cells, tmp_path, monkeypatch):
    monkeypatch.setenv("MPLBACKEND", "agg")  # as clusters and container images set it
    settings(cells).source += SMALL
    (again,) = [nbformat.v4.new_code_cell(cell.source) for cell in cells if "utils.fit(" in cell.source]
    small = nbformat.v4.new_notebook(cells=[*cells, again])
    NotebookClient(small, timeout=300, resources={"metadata": {"path": str(ROOT)}}).execute()
    saved = list((tmp_path / "images").iterdir())
    assert len(pictures(small.cells)) == len(saved) == 8 and (tmp_path / "ultimus.pt").exists()
    first, second = (re.findall(r"Test set: .*?%", str(c.outputs)) for c in small.cells if "utils.fit(" in c.source)
    assert first == second and len(first) == 2


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
        ("", "", "This was a run on CIFAR-10.", {"notebook.ipynb", "ultimus.pt", "README.md"}),
        (utils.STAND_IN, "", "This was no run", {f"{utils.STAND_IN}/notebook.ipynb", f"{utils.STAND_IN}/ultimus.pt"}),
        ("", "1 / 0", "ZeroDivisionError", set()),
        ("", "os.kill(os.getppid(), signal.SIGINT); time.sleep(60)", "KeyboardInterrupt", set()),
    ],
)
def test_the_main_command_changes_only_what_its_run_may(tmp_path, monkeypatch, capsys, folder, then, ending, changed):
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
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path.read_bytes() != before]
    assert {path.relative_to(tmp_path).as_posix() for path in written} == changed
