"""What a user relies on in the experiments: they compare what they name, and lose no result."""

import csv
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from unittest.mock import Mock

import nbformat
import PIL.Image
import pytest
import torch
from tqdm import tqdm

import utils
from experiments import ablation, harness, published, readme, tuning, untrained
from experiments.harness import Setting, build, read, run_all, values
from model9 import UltimusNet

# --- The networks and their trainings -------------------------------------------------------------

PAIRS = [*zip(ablation.LADDER, ablation.LADDER[1:]), *ablation.COSTS]
PAIRS += [(ablation.OURS, other) for other in (ablation.BARE, ablation.STALLED, ablation.LINEAR)]


@pytest.mark.parametrize("before, after", PAIRS, ids=lambda setting: setting.name)
def test_two_compared_networks_differ_by_one_change(before, after):
    before, after = asdict(before), asdict(after)
    changed = {field for field in before if before[field] != after[field]} - {"name"}
    assert len(changed) == 1 or changed == {"batch_size", "max_lr"}  # a batch wants its own rate


def test_ours_starts_as_the_notebooks_network():
    torch.manual_seed(1)
    ours = build(ablation.OURS).state_dict()
    torch.manual_seed(1)
    expected = UltimusNet().state_dict()
    assert all(torch.equal(ours[name], expected[name]) for name in expected)


def test_without_blocks_the_last_layer_starts_as_pytorchs():
    bare, bound = build(ablation.BARE), 48**-0.5
    assert len(bare.blocks) == 0
    assert 0.9 * bound < bare.fc.weight.abs().max() < bound


def test_attention_across_the_batch_is_the_formula_of_the_published_solution():
    block, x = build(ablation.MIXING).blocks[0], torch.randn(5, 48)
    q, k, v = block.query(x), block.key(x), block.value(x)
    attention = torch.stack([q[:, i] @ k for i in range(8)]).softmax(1) / 8**0.5
    torch.testing.assert_close(block(x), x + block.out(v @ attention))


def test_through_2_directions_the_blocks_are_a_projection_of_rank_2():
    torch.manual_seed(0)
    blocks = build(ablation.THROUGH_2).double().blocks
    jacobian = torch.func.jacrev(blocks)(torch.zeros(48).double())
    expected = torch.tensor([1.0] * 2 + [0.0] * 46).double()
    torch.testing.assert_close(torch.linalg.svdvals(jacobian), expected, atol=0.05, rtol=0)


def test_a_flip_is_to_the_side_and_each_image_draws_its_own():
    image = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    image[:, :, 8:16, 8:12] = 255  # upper left
    draws = harness.AUGMENTATIONS["crop by 2 and flip"](image.expand(2000, -1, -1, -1))
    assert len({draw.numpy().tobytes() for draw in draws}) == 2 * 25
    assert not draws[:, :, 18:].any()


def test_the_validation_split_is_the_same_5000_training_images():
    training, test = torch.arange(50_000), torch.arange(10_000)
    data = utils.Data(training, training, test, test)
    (used, _), (held_out, _) = harness.splits(data, validation=True)
    assert len({*used.tolist(), *held_out.tolist()}) == 50_000
    assert len(held_out) == 5_000 and held_out[:4].tolist() == HELD_OUT


HELD_OUT = [19260, 3355, 49230, 27606]  # the first of them
SETTING = Setting("x", batch_size=20, max_lr=0.02, block_rate=0.3, augment="none")


@pytest.fixture
def tiny(monkeypatch):
    """In place of CIFAR-10, 100 training and 40 test images of the stand-in; two epochs."""
    sizes = 100, 100, 40, 40
    data = utils.Data(*(part[:size] for part, size in zip(utils.stand_in(), sizes)))
    monkeypatch.setattr(utils, "load_cifar10", lambda: data)
    monkeypatch.setattr(harness, "EPOCHS", 2)
    return data


def test_a_training_is_prepared_as_its_setting_says(tiny):
    (_, _, batches, optimizer, _), held_out = harness.prepare(SETTING, seed=1)
    assert batches.batch_size == 20 and torch.equal(held_out.images, tiny.test_images)
    assert torch.equal(batches.transform(batches.images), batches.images)
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.006])


@pytest.fixture
def row(tiny, monkeypatch):
    """The row of a run whose network looks at the left upper pixel alone."""

    def fit(*arguments):
        accuracies = (1.0, 2.0), (12.344, 56.788)
        arguments[-1].extend(dict(train_accuracy=a, test_accuracy=b) for a, b in accuracies)

    net = torch.nn.Linear(1, 10)
    net.forward, net.blocks = guess, torch.nn.Sequential()
    monkeypatch.setattr(harness, "build", lambda setting: net)
    monkeypatch.setattr(utils, "fit", fit)
    return harness.run(SETTING, seed=3)


def guess(images):
    return images[:, 0, 0, :1] * torch.arange(10.0)


def test_a_row_tells_the_setting_and_the_history(row):
    assert harness.job({name: str(value) for name, value in row.items()}) == (SETTING, 3)
    assert (row["train_accuracy"], row["accuracy"]) == (12.34, 56.79)
    assert row["curve"] == "2.00 56.79"


def test_a_row_tells_the_accuracy_of_both_views_and_of_other_batches(row, tiny):
    images, labels = utils.normalize(tiny.test_images), tiny.test_labels
    both = guess(images).softmax(1) + guess(images.flip(3)).softmax(1)
    assert row["mirrored"] == pytest.approx(utils.accuracy(both, labels))
    single = pytest.approx(utils.accuracy(guess(images), labels))
    assert single == row["in_batches_of_8"] == row["one_by_one"] == row["sorted_by_class"]


# --- The tables -----------------------------------------------------------------------------------


def run(setting, seed):
    return asdict(setting) | {"seed": seed, "accuracy": 50.0 + seed}


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A path for ``run_all``, which makes no training here."""
    threads = lambda *_, **options: ThreadPoolExecutor(1)  # noqa: E731
    monkeypatch.setattr(harness, "ProcessPoolExecutor", threads)
    monkeypatch.setattr(harness, "run", run)
    yield tmp_path / "table.csv"
    assert not tqdm._instances, "an open bar moves the bars of other tests"


def test_a_stopped_experiment_resumes_with_the_runs_that_its_table_lacks(table):
    a, b, c = (Setting(name, block_rate=1) for name in "abc")
    run_all(table, [(a, 1), (a, 2)])
    run_all(table, [(a, 1), (a, 2), (Setting("a", block_rate=1.0), 1), (b, 1), (c, 1)])
    rows = [(row["name"], row["seed"]) for row in read(table)]
    assert rows == [("a", "1"), ("a", "2"), ("b", "1"), ("c", "1")]


def test_two_writers_of_one_table_lose_no_row(table):
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda seed: harness.append(table, [{"seed": seed}]), range(40)))
    assert sorted(int(row["seed"]) for row in read(table)) == list(range(40))


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError("No space left on device")])
def test_after_ctrl_c_or_on_a_full_disk_no_run_starts_and_no_row_is_lost(table, monkeypatch, error):
    run_all(table, [(Setting("b"), 1)])
    started = Mock(wraps=run)
    monkeypatch.setattr(harness, "run", started)
    monkeypatch.setattr(csv.DictWriter, "writerows", Mock(side_effect=error))
    with pytest.raises(type(error)):
        run_all(table, [(Setting("a"), seed) for seed in range(9)])
    assert len(read(table)) == 1 and started.call_count <= torch.get_num_threads()


WORKER = """
import time
from experiments.harness import ProcessPoolExecutor, get_context, start_worker
pool = ProcessPoolExecutor(1, get_context("fork"), initializer=start_worker)
pool.submit(time.sleep, 0).result()
print("started", flush=True)
pool.submit(time.sleep, 60).result()
"""


def test_a_worker_ends_with_its_parent():
    parent = subprocess.Popen([sys.executable, "-c", WORKER], cwd=readme.ROOT, stdout=-1)
    assert parent.stdout.readline() == b"started\n"
    parent.send_signal(signal.SIGTERM)
    parent.communicate(timeout=30)  # ends when the worker, too, has closed the pipe
    assert parent.returncode == -signal.SIGTERM


# --- Networks of others ---------------------------------------------------------------------------

SOURCE = """
import torch, a_package_that_is_missing
WIDTH = 10
print("a line that trains, and must not run", 1 / 0)
class Net(torch.nn.Module):
    def __init__(self, width=WIDTH):
        super().__init__()
        self.fc = torch.nn.Linear(3072, width)
    def forward(self, x):
        return self.fc(x.flatten(1))
"""


@pytest.fixture
def clones(tmp_path):
    """A folder with a clone of a/b, whose network stands in a file and in a notebook."""
    clone = tmp_path / "a" / "b"
    clone.mkdir(parents=True)
    (clone / "net.py").write_text(SOURCE)
    cells = [nbformat.v4.new_code_cell(text) for text in ("!pip install torch\n%cd x", SOURCE)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), clone / "net.ipynb")
    git = "git init -q && git add -A && git -c user.name=a -c user.email=a@b.c commit -qm x"
    subprocess.run(f"{git} && rm net.*", cwd=clone, shell=True, check=True)
    return tmp_path


@pytest.mark.parametrize("path", ["net.py", "net.ipynb"])
def test_a_network_is_built_from_the_definitions_of_its_file_or_notebook(clones, path):
    row = dict(model_repository="a/b", model_commit="HEAD", model_path=path)
    net = published.network(clones, row | {"class": "Net", "arguments": "12"})
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 12)


def test_the_answers_are_written_into_the_table(clones, tiny, monkeypatch):
    row = dict(repository="a/b", model_repository="a/b", model_commit="HEAD", model_path="net.py")
    monkeypatch.setattr(published, "CSV", clones / "published.csv")
    harness.append(published.CSV, [row | {"class": "Net", "arguments": ""}])
    published.ask(clones)
    (row,) = read(published.CSV)
    assert (row["mixes"], row["sees"], row["directions"]) == ("False", "32", "9")
    assert all(published.passes(row))


# --- The committed tables and what the pages say of them ------------------------------------------


def test_the_committed_figure_is_drawn_from_the_committed_tables(tmp_path):
    published.draw(tmp_path)
    folders = tmp_path, published.IMAGES
    new, old = (PIL.Image.open(folder / "published.png").text["Comment"] for folder in folders)
    assert new == old, "run python -m experiments.readme"


@pytest.mark.parametrize("module", [ablation, tuning])
def test_a_committed_table_holds_every_run_of_its_script_and_no_other(module):
    found = [harness.job(row) for row in read(module.CSV)]
    assert sorted(map(str, found)) == sorted(map(str, module.JOBS))


def test_every_network_was_asked():
    names = [row["name"] for row in read(untrained.CSV)]
    assert names == [each.name for each in untrained.NETWORKS for _ in untrained.SEEDS]
    assert len(read(published.CSV)) == 26 and all(row["mixes"] for row in read(published.CSV))


def test_claim_no_other_solution_passes_all_questions_and_only_the_best_passes_two():
    counts = [sum(published.passes(row)) for row in read(published.CSV)]
    accuracies = [float(row["accuracy"]) for row in read(published.CSV)]
    assert counts[0] == 2 and max(counts[1:]) < 2 and accuracies[0] == max(accuracies)
    assert read(published.CSV)[readme.PUBLISHED]["repository"].startswith("shreyash-99/")
    ours = [row for row in read(untrained.CSV) if row["name"] == "ours"]
    assert {published.passes(row) for row in ours} == {(True, True, True)}


CLAIMS = {  # (network, another): the difference of their mean test accuracies is between
    (ablation.STALLED, ablation.BARE): (-20, -5),
    (ablation.OURS, ablation.BARE): (-1, 0),
    (ablation.RESIDUAL, ablation.BARE): (0, 1),
    (ablation.LINEAR, ablation.BARE): (-1, 0),
    (ablation.LINEAR, ablation.OURS): (0, 1),
    (ablation.MIXING, ablation.RESIDUAL): (-1, 0),
    (ablation.NARROW, ablation.AVERAGED): (-20, -5),
    (ablation.THROUGH_2, ablation.OURS): (-20, -5),
}


@pytest.mark.parametrize("pair", CLAIMS, ids=lambda pair: f"{pair[0].name} / {pair[1].name}")
def test_claim_of_two_networks(pair):
    low, high = CLAIMS[pair]
    gain, _ = readme.difference(*(values(read(ablation.CSV), each.name) for each in pair))
    assert low < gain < high


def test_claim_one_image_at_a_time_attention_across_the_batch_costs_accuracy():
    rows = [row for row in read(ablation.CSV) if row["name"] == ablation.MIXING.name]
    assert len(rows) == 3
    assert all(float(row["one_by_one"]) < float(row["accuracy"]) - 1 for row in rows)


def test_claim_no_change_of_ours_was_better_on_the_validation_images():
    means = {each: values(read(tuning.CSV), each.name, "mirrored") for each in tuning.SETTINGS}
    best = max(means, key=lambda each: sum(means[each]) / len(means[each]))
    assert best.name == "none"
