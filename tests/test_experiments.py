"""What a user relies on in the experiments: they compare what they name, and lose no result."""

import csv
import runpy
import signal
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from unittest.mock import Mock

import nbformat
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close
from tqdm import tqdm

import utils
from experiments import ablation, harness, published, readme, tuning, untrained
from experiments.harness import Setting, build, read, run_all, values

# --- The networks and their trainings -------------------------------------------------------------

CUBE = ablation.CUBE
PAIRS = [*zip(ablation.LADDER, ablation.LADDER[1:]), (CUBE[0], ablation.FORMULA)]
PAIRS += [(CUBE[i], CUBE[i + bit]) for bit in (1, 2, 4) for i in range(8) if not i & bit]
PAIRS += [(ablation.OURS, other) for other in [*ablation.VARIANTS[3:], *ablation.OTHERS[2:4]]]
PAIRS += [(ablation.STALLED, other) for other in (ablation.RESIDUAL, ablation.OTHERS[4])]
RATES = {"batch_size", "max_lr", "block_rate"}  # a batch size needs its own rates


@pytest.mark.parametrize("before, after", PAIRS, ids=lambda setting: setting.name)
def test_two_compared_networks_differ_by_one_change(before, after):
    before, after = asdict(before), asdict(after)
    changed = {field for field in before if before[field] != after[field]} - {"name"}
    assert len(changed) == 1 or changed == RATES


NETWORKS = {(each.stem, each.head, each.init, each.views): each for each in ablation.ORDER}


@pytest.mark.parametrize("setting", NETWORKS.values(), ids=lambda setting: setting.name)
def test_a_network_has_the_answers_of_the_table_on_other_images_too(setting):
    torch.manual_seed(1)
    images = F.interpolate(torch.randn(64, 3, 4, 4), size=32, mode="bicubic")
    answers = utils.diagnose(build(setting), images)
    rows = [row for row in read(untrained.CSV) if row["name"] == setting.name]
    for name, answer in answers._asdict().items():
        assert str(answer) in {row[name] for row in rows}


@pytest.mark.parametrize("setting", [CUBE[0], CUBE[1], ablation.FORMULA])
def test_a_map_for_the_batch_is_the_published_one_but_for_the_place_of_the_root(setting):
    block, x = build(setting).blocks[0], torch.randn(5, 48)
    q, k, v = block.query(x), block.key(x), block.value(x)
    before, after = (8**0.5, 1) if setting == ablation.FORMULA else (1, 8**0.5)
    attention = (q.T @ k / before).softmax(1) / after
    assert_close(block(x), block.out(v @ attention) + x * (setting == CUBE[1]))


def test_x_is_that_of_one_view_or_the_mean_over_tiles():
    images = torch.randn(2, 3, 32, 32)
    tiles, one = (build(setting).eval() for setting in (CUBE[4], CUBE[6]))
    assert_close(one.features(images), one.stem(images).mean((2, 3)))
    tiles.stem = one.stem
    parts = [part for row in images.split(8, 2) for part in row.split(8, 3)]
    assert_close(tiles.features(images), sum(map(one.features, parts)) / 16)


def test_the_stem_of_the_eight_networks_has_two_max_pools_after_relu():
    stem, images = build(CUBE[6]).stem, torch.randn(2, 3, 32, 32)
    x = images
    for part in stem:
        x = F.relu(part.norm(F.conv2d(x, part.conv.weight, padding=1)))
        x = F.max_pool2d(x, 2) if part is not stem[2] else x
    assert_close(stem(images), x)


@pytest.mark.parametrize("setting, rank", [(ablation.LINEAR, 8), (ablation.THROUGH_2, 2)])
def test_what_takes_the_blocks_place_is_at_first_a_projection(setting, rank):
    torch.manual_seed(0)
    blocks = build(setting).double().blocks
    jacobian = torch.func.jacrev(blocks)(torch.zeros(48).double())
    expected = torch.eye(48).double()[:rank].sum(0)
    assert_close(torch.linalg.svdvals(jacobian), expected, atol=0.05, rtol=0)


@pytest.mark.parametrize(
    "draw, padding, share",
    [
        (utils.random_crop, 4, 0),
        (harness.AUGMENTATIONS["crop by 2"], 2, 0),
        (harness.AUGMENTATIONS["crop by 2 and flip"], 2, 0.5),
    ],
)
def test_each_image_draws_its_own_crop_and_flip(draw, padding, share):
    torch.manual_seed(0)
    image, places = torch.randint(256, (3, 32, 32), dtype=torch.uint8), range(2 * padding + 1)
    padded = F.pad(image, [padding] * 4, mode="reflect")
    crops = [padded[:, y : y + 32, x : x + 32] for y in places for x in places]
    plain = {crop.numpy().tobytes() for crop in crops}
    mirrored = {crop.flip(2).numpy().tobytes() for crop in crops}
    draws = [each.numpy().tobytes() for each in draw(image.repeat(2000, 1, 1, 1))]
    assert {*draws} == (plain | mirrored if share else plain)
    assert not harness.AUGMENTATIONS["none"]
    assert sum(each in mirrored for each in draws) / 2000 == pytest.approx(share, abs=0.1)


def test_the_validation_split_is_the_same_5000_training_images():
    every = torch.arange(50_000)
    data = utils.Data(every, every, every[:9], every[:9])
    (used, labels), (held_out, _) = harness.splits(data, validation=True)
    assert torch.equal(torch.cat([used, held_out]).sort()[0], every)
    assert torch.equal(used, labels)
    assert len(held_out) == 5_000 and held_out[0] == 19260


SETTING = Setting("x", batch_size=20, max_lr=0.02, block_rate=0.3, weight_decay=0.1)


@pytest.fixture
def tiny(monkeypatch):
    """In place of CIFAR-10, 100 training and 40 test images of the stand-in; two epochs."""
    sizes = 100, 100, 40, 40
    data = utils.Data(*(part[:size] for part, size in zip(utils.stand_in(), sizes)))
    monkeypatch.setattr(utils, "load_cifar10", lambda: data)
    monkeypatch.setattr(harness, "EPOCHS", 2)
    return data


def test_a_training_is_prepared_as_its_setting_and_seed_say(tiny):
    trainings, (held_out, *_) = zip(*(harness.prepare(SETTING, seed) for seed in (1, 1, 2)))
    model, _, batches, optimizer, scheduler = trainings[0]
    assert scheduler.total_steps == 2 * len(batches) == 10
    assert [group["max_lr"] for group in optimizer.param_groups] == pytest.approx([0.02, 0.006])
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.1}
    first, again, other = (training[0].fc.weight for training in trainings)
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert not torch.equal(next(iter(batches))[1], tiny.train_labels[:20])  # shuffled
    assert batches.transform is harness.AUGMENTATIONS[SETTING.augment]
    assert torch.equal(held_out.images, tiny.test_images) and held_out.batch_size == 512


def test_the_stand_in_is_refused(monkeypatch):
    monkeypatch.setattr(utils.CIFAR10, "replaced", True)
    monkeypatch.setattr(utils, "load_cifar10", lambda: print("no file"))
    with pytest.raises(RuntimeError, match="no file\nthe experiments need the real CIFAR-10"):
        harness.load()


HISTORY = [dict(train_accuracy=1.0, test_accuracy=2.0)]
HISTORY += [dict(train_accuracy=12.344, test_accuracy=56.788)]


def test_a_row_tells_the_setting_the_history_and_the_accuracy_in_other_batches(tiny, monkeypatch):
    def predict(model, device, batches):
        return scores(batches.images, batches.batch_size), batches.labels

    def scores(images, size=512):
        """They depend on the left upper pixel and on the size of the batches."""
        return torch.sin((images[:, 0, 0, :1] + 0.3 * size) * torch.arange(10.0))

    def percent(scores, order=slice(None)):
        return utils.accuracy(scores, tiny.test_labels[order])

    def fit(model, device, batches, held_out, *_):
        assert torch.equal(held_out.images, tiny.test_images) and torch.initial_seed() == 3
        return HISTORY

    parts = harness.splits(tiny, validation=False)
    monkeypatch.setattr(harness, "splits", lambda _, validation: validation and parts)
    monkeypatch.setattr(utils, "predict", predict)
    monkeypatch.setattr(utils, "fit", fit)
    row = harness.run(SETTING, seed=3, validation=True)
    assert harness.job({name: str(value) for name, value in row.items()}) == (SETTING, 3)
    assert (row["train_accuracy"], row["accuracy"], row["curve"]) == (12.34, 56.79, "2.00 56.79")
    images, order = tiny.test_images, tiny.test_labels.argsort(stable=True)
    both = scores(images).softmax(1) + scores(images.flip(3)).softmax(1)
    assert row["mirrored"] == percent(both) != percent(scores(images))
    assert row["one_by_one"] == percent(scores(images, 1))
    assert row["sorted_by_class"] == percent(scores(images[order]), order)


# --- The tables -----------------------------------------------------------------------------------


def run(setting, seed, **options):
    assert seed < 7, "a failed run"
    return asdict(setting) | {"seed": seed, "accuracy": 50.0 + seed} | options


@pytest.fixture
def table(tmp_path, monkeypatch):
    """A path for ``run_all``, which makes no training here."""
    threads = lambda *_, **options: ThreadPoolExecutor(1)  # noqa: E731
    monkeypatch.setattr(harness, "ProcessPoolExecutor", threads)
    monkeypatch.setattr(harness, "run", run)
    monkeypatch.setattr(harness, "load", Mock())
    yield tmp_path / "table.csv"
    assert not tqdm._instances, "an open bar moves the bars of other tests"


def test_a_stopped_experiment_resumes_with_the_runs_that_its_table_lacks(table):
    a, b = (Setting(name, block_rate=1) for name in "ab")
    run_all(table, [(a, 1), (a, 2)])
    run_all(table, [(a, 1), (Setting("a", block_rate=1.0), 2), (b, 1)])
    assert [row["name"] + row["seed"] for row in read(table)] == ["a1", "a2", "b1"]


def test_every_run_has_the_options_and_an_error_is_raised_after_the_others(table):
    with pytest.raises(AssertionError, match="a failed run"):
        run_all(table, [(Setting("a"), seed) for seed in (1, 7, 2)], validation=True)
    assert [row["seed"] + row["validation"] for row in read(table)] == ["1True", "2True"]


@pytest.mark.parametrize("name, options", [("ablation", {}), ("tuning", {"validation": True})])
def test_only_tuning_measures_on_the_validation_images(monkeypatch, name, options):
    monkeypatch.setattr(harness, "run_all", Mock())
    runpy.run_path(f"{readme.ROOT}/experiments/{name}.py", run_name="__main__")
    assert harness.run_all.call_args.kwargs == options


def test_without_cifar10_no_run_starts(table, monkeypatch):
    monkeypatch.setattr(harness, "load", Mock(side_effect=RuntimeError("the real CIFAR-10")))
    with pytest.raises(RuntimeError, match="the real CIFAR-10"):
        run_all(table, [(Setting("a"), 7)])


def test_a_table_keeps_line_breaks_and_gains_columns(table):
    for row in ({"seed": 2, "x": 5}, {"seed": 1, "x": ""}, {"seed": 0, "x": 3, "y": 4}):
        harness.append(table, [{"name": "a\nb"} | row])
    assert values(read(table), "a\nb", "x") == [3, 5]
    assert values(read(table), "a\nb", "y") == [4]


def test_on_a_full_disk_no_run_starts_and_no_row_is_lost(table, monkeypatch):
    run_all(table, [(Setting("b"), 1)])
    started = Mock(wraps=run)
    monkeypatch.setattr(harness, "run", started)
    monkeypatch.setattr(csv.DictWriter, "writerows", Mock(side_effect=OSError))
    with pytest.raises(OSError):
        run_all(table, [(Setting("a"), seed) for seed in range(6)])
    assert len(read(table)) == 1 and started.call_count <= torch.get_num_threads()


PARENT = """
import multiprocessing, pathlib, signal, time, torch
from experiments import harness
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in the background
torch.set_num_threads(2)
def run(*_):
    print(f"{torch.get_num_threads()} thread", flush=True)
    time.sleep(60)
harness.load, harness.run = list, run
harness.get_context = lambda _: multiprocessing.get_context("fork")
harness.run_all(pathlib.Path("none.csv"), [(harness.Setting("a"), 1)])
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGKILL"])
def test_a_worker_has_one_thread_and_ends_at_once_with_its_parent(name):
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, cwd=readme.ROOT)
    parent = subprocess.Popen([sys.executable, "-c", PARENT], **options)
    while b"1 thread\n" not in parent.stdout.readline():
        assert parent.poll() is None
    parent.send_signal(signal.Signals[name])
    parent.communicate(timeout=30)  # ends when the worker, too, has closed the pipe
    assert parent.returncode != 0


# --- Networks of others ---------------------------------------------------------------------------

SOURCE = """
import torch, a_package_that_is_missing
from torch import nn
WIDTH = 10
print("a line that trains, and must not run", 1 / 0)
class Net(nn.Module):
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
    git = "git -c user.name=a -c user.email=a@b.c commit -qam x"
    git = f"git init -q && git add . && {git} && git rm -q net.* && {git}"
    subprocess.run(git, cwd=clone, shell=True, check=True)
    return tmp_path


ROW = dict(repository="a/b", model_repository="a/b", model_commit="HEAD^", model_path="net.py")
ROW |= {"class": "Net", "arguments": ""}


@pytest.mark.parametrize("path", ["net.py", "net.ipynb"])
def test_a_network_is_built_from_the_definitions_of_its_file_or_notebook(clones, path):
    net = published.network(clones, ROW | {"model_path": path, "arguments": "12"})
    assert net(torch.zeros(2, 3, 32, 32)).shape == (2, 12)


def test_the_answers_of_all_seeds_are_written_into_the_table(clones, tiny, monkeypatch):
    answers = lambda *_: utils.Diagnosis(False, torch.initial_seed(), 9)  # noqa: E731
    monkeypatch.setattr(utils, "diagnose", answers)
    monkeypatch.setattr(published, "CSV", clones / "published.csv")
    harness.append(published.CSV, [ROW, ROW])
    published.ask(clones)
    _, row = read(published.CSV)
    assert (row["mixes"], row["sees"], row["directions"]) == ("False", "1 2 3", "9")


def test_a_fixed_network_is_asked_and_trained_as_its_table_says(clones, tiny, monkeypatch):
    def fit(net, device, batches, held_out, optimizer, scheduler, epochs):
        (group,) = optimizer.param_groups
        assert (group["max_lr"], group["weight_decay"], epochs) == (0.02, 0.1, 24)
        assert batches.shuffle and scheduler.total_steps == epochs * len(batches) == 48
        assert torch.equal(held_out.images, tiny.test_images)
        assert (batches.transform, torch.initial_seed()) == (torch.clone, 3)
        return HISTORY

    def fix(net):
        net.fc.weight.data.zero_()

    training = fix, (50, 0.1, torch.clone), dict(max_lr=0.02)
    monkeypatch.setitem(published.TRAININGS, "a/b", training)
    monkeypatch.setattr(utils, "fit", fit)
    row = published.train(clones, ROW, 3)
    assert [*row.values()] == ["a/b", 3, False, 32, 0, 56.79]


def test_the_fixed_networks_train_as_their_notebooks_say():
    for row in read(published.CSV)[:2]:
        _, (*numbers, _), policy = published.TRAININGS[row["repository"]]
        told = "batch_size", "weight_decay", "max_lr"
        assert [float(row[name]) for name in told] == [*numbers, policy["max_lr"]]


def test_each_image_of_a_batch_draws_its_own_augmentation():
    draws = published.each(published.FLIP)(torch.arange(2.0).expand(30, 1, 2))
    assert len(draws.unique(dim=0)) == 2


def test_the_fixes_are_a_max_pool_and_a_residual():
    conv, block = torch.nn.Conv2d(3, 4, 3), torch.nn.Linear(8, 8)
    images, x = torch.randn(2, 3, 10, 10), torch.randn(2, 8)
    expected = F.max_pool2d(conv(images), 2), x + block(x)
    published.halve(conv), published.add_input(block)
    assert_close((conv(images), block(x)), expected)


@pytest.mark.parametrize(
    "mixes, sees, directions, passed",
    [("False", "16", "5", 3), ("False True", "15 16", "4 9", 0), ("False", "32", "4", 2)],
)
def test_an_answer_passes_from_16_pixels_and_five_directions_on(mixes, sees, directions, passed):
    assert sum(published.passes(dict(mixes=mixes, sees=sees, directions=directions))) == passed


# --- The committed tables and what the pages say of them ------------------------------------------


def test_the_committed_figure_shows_each_solution_at_its_accuracy_and_hides_none(tmp_path):
    (axes,) = published.draw(tmp_path).axes
    dots, *_, way, star = axes.lines
    accuracies = sorted(float(row["accuracy"]) for row in read(published.CSV))
    assert sorted(dots.get_xdata()) == accuracies
    ticks = {tick.get_text(): tick.get_position()[1] for tick in axes.get_yticklabels()}
    assert [*ticks] == ["none", "one", "two", "all three"]
    assert axes.get_xlabel() == "test accuracy (%)"
    assert [text.xy[0] for text in axes.texts] == [40.14, 64.43, 62.25]
    assert [way.get_ydata()[i] for i in (0, -1)] == [ticks["none"], ticks["all three"]]
    assert star.get_xdata() == pytest.approx(statistics.mean(values(read(ablation.CSV), "ours")))
    assert all(axes.viewLim.contains(*point) for line in axes.lines for point in line.get_xydata())
    folders = tmp_path, published.IMAGES
    new, old = (PIL.Image.open(folder / "published.png").text["Comment"] for folder in folders)
    assert new == old, "run python -m experiments.readme"


@pytest.mark.parametrize("module", [ablation, tuning])
def test_a_committed_table_holds_every_run_of_its_script_and_no_other(module):
    found = [row for row in read(module.CSV) if row["name"] != ablation.REBUILT]
    assert sorted(str(harness.job(row)) for row in found) == sorted(map(str, module.JOBS))


def test_every_network_was_asked_and_the_fixed_ones_were_trained():
    names = [row["name"] for row in read(untrained.CSV)]
    assert names == [each.name for each in ablation.ORDER for _ in untrained.SEEDS]
    runs = [(row["repository"], row["seed"]) for row in read(published.FIXED)]
    assert sorted(runs) == sorted((name, seed) for name in published.TRAININGS for seed in "123")
