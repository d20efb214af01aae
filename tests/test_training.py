"""What a user relies on in the schedule and the loops."""

import contextlib
import copy
import errno
import io
import os
import pickle
import platform
import re
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import utils
from model9 import UltimusNet

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]

# The learning rates at which the 24 epochs of the published log begin.
PUBLISHED_RATES = [
    0.0005,
    0.0014394972305070302,
    0.002378994461014061,
    0.0033184916915210906,
    0.004257988922028121,
    0.0049453140943877556,
    0.004685157844387756,
    0.004425001594387756,
    0.004164845344387755,
    0.0039046890943877552,
    0.0036445328443877553,
    0.0033843765943877553,
    0.003124220344387755,
    0.0028640640943877554,
    0.0026039078443877554,
    0.002343751594387755,
    0.002083595344387755,
    0.001823439094387755,
    0.001563282844387755,
    0.0013031265943877547,
    0.0010429703443877551,
    0.0007828140943877552,
    0.0005226578443877552,
    0.0002625015943877552,
]

BAR = re.compile(
    r"Batch_id=(?P<batch>\d+) Loss=(?P<loss>\d+\.\d{5}) Accuracy=(?P<accuracy>\d{1,3}\.\d\d)%: "
    r"100%\|█{10}\| (?P<done>\d+)/(?P<steps>\d+) \[\d\d:\d\d<00:00, +\d+\.\d\d(it/s|s/it)\]"
)
TEST = re.compile(
    r"Test set: Average loss: (?P<loss>\d+\.\d{4}), "
    r"Accuracy: (?P<correct>\d+)/(?P<count>\d+) \((?P<accuracy>\d{1,3}\.\d\d)%\)"
)


def parse(log):
    """The history that a log tells of, as the rows of ``fit`` without their seconds."""
    log = re.sub(r".*\r(?=[^\n])", "", log)  # what a terminal shows of the progress
    rows = []
    for block in filter(None, log.split("\n\n")):
        head, bar, result = block.strip("\n").split("\n")
        epoch, lr = re.fullmatch(r"EPOCH: (\d+) \(LR: (\S+)\)", head).groups()
        bar, result = BAR.fullmatch(bar), TEST.fullmatch(result)
        rows.append(
            dict(
                epoch=int(epoch),
                lr=float(lr),
                train_loss=float(bar["loss"]),
                train_accuracy=float(bar["accuracy"]),
                test_loss=float(result["loss"]),
                test_accuracy=float(result["accuracy"]),
            )
        )
    return rows


# --- schedule -------------------------------------------------------------------


def test_the_default_schedule_is_the_published_one():
    rates = utils.learning_rates()
    assert len(rates) == 24 * 98
    assert rates[::98] == pytest.approx(PUBLISHED_RATES, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.integers(6, 200), st.floats(1e-4, 1))
def test_the_rate_rises_to_its_peak_in_the_first_fifth_and_falls_to_a_thousandth(epochs, steps, peak):
    rates = utils.learning_rates(epochs, steps, peak)
    total, top = epochs * steps, rates.index(max(rates))
    assert len(rates) == total
    assert rates[0] == pytest.approx(peak / 10) and rates[-1] == pytest.approx(peak / 1000)
    assert max(rates) <= peak * (1 + 1e-9) and abs(top - (0.2 * total - 1)) <= 1
    assert all(a < b for a, b in zip(rates[:top], rates[1 : top + 1]))
    assert all(a > b for a, b in zip(rates[top:], rates[top + 1 :]))


def test_the_blocks_may_have_a_rate_of_their_own_and_the_log_shows_the_others(capsys, small):
    model = UltimusNet()
    optimizer = utils.adam(model)
    others, blocks = optimizer.param_groups
    assert {id(p) for p in blocks["params"]} == {id(p) for p in model.blocks.parameters()}
    assert len(others["params"]) + len(blocks["params"]) == len(list(model.parameters()))
    scheduler = utils.one_cycle(optimizer, 1, 6, [0.01, 0.002])
    assert scheduler.get_last_lr() == pytest.approx([0.001, 0.0002])
    (row,) = utils.fit(model, CPU, *small, optimizer, scheduler, 1)
    assert row["lr"] == 0.001 and "EPOCH: 1 (LR: 0.001)" in capsys.readouterr().out


def test_adams_beta1_stays_unless_it_is_to_be_cycled_as_in_the_published_run():
    for cycled, expected in ((False, {0.9}), (True, {0.95, 0.85})):
        optimizer = utils.adam(UltimusNet())
        scheduler, seen = utils.one_cycle(optimizer, 1, 10, cycle_momentum=cycled), []
        for _ in range(10):
            seen.append(round(optimizer.param_groups[0]["betas"][0], 6))
            optimizer.step()
            scheduler.step()
        assert {max(seen), min(seen)} == expected


def test_a_schedule_too_short_to_rise_is_refused():
    with pytest.raises(ValueError, match="1 epochs of 5 steps.*6 steps"):
        utils.learning_rates(1, 5)


def test_the_lr_finder_leaves_model_output_and_warnings_clean(training, capfd):
    model, batches = training[0], training[2]
    before = copy.deepcopy(model.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # hidden from users; old matplotlib has some
        figure = utils.find_lr(model, batches, max_lr=0.015, block_rate=0.2, steps=20)
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    curve, mark = figure.axes[0].lines
    assert len(curve.get_xdata()) > 5 and list(mark.get_xdata()) == [0.015, 0.015]
    assert curve.get_xdata()[0] == pytest.approx(1e-4)


def test_the_lr_finder_slows_the_blocks_as_the_training_does_and_gives_its_bar_back(training, monkeypatch):
    from torch_lr_finder import lr_finder

    rates, bar = [], lr_finder.tqdm
    step = torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: rates.append([g["lr"] for g in self.param_groups]) or step(self)
    )
    utils.find_lr(training[0], training[2], max_lr=0.015, block_rate=0.25, steps=10)
    assert len(rates) > 5 and all(blocks == pytest.approx(0.25 * others) for others, blocks in rates[1:])
    assert lr_finder.tqdm is bar


# --- loops ----------------------------------------------------------------------


def test_the_log_has_the_published_format_and_parses_back_into_the_history(training, capsys):
    history = utils.fit(*training)
    log = capsys.readouterr()
    assert log.err == ""
    rows = parse(log.out)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, told in zip(history, rows, strict=True):
        assert row.pop("seconds") > 0
        assert row["lr"] == told.pop("lr")
        assert row == pytest.approx(told | {"lr": row["lr"]}, abs=6e-3)
    assert "Batch_id=5 " in log.out and "| 6/6 [" in log.out and "/96 (" in log.out


def test_the_published_logs_own_lines_match_this_format():
    assert BAR.fullmatch("Batch_id=97 Loss=1.97109 Accuracy=17.78%: 100%|██████████| 98/98 [00:24<00:00,  4.05it/s]")
    assert TEST.fullmatch("Test set: Average loss: 1.9128, Accuracy: 1821/10000 (18.21%)")


def test_one_seed_gives_one_log(capsys, small):
    logs = []
    for _ in range(2):
        utils.seed_everything(3)
        model = UltimusNet()
        optimizer = torch.optim.Adam(model.parameters(), fused=True)
        utils.fit(model, CPU, *small, optimizer, utils.one_cycle(optimizer, 2, 6), 2)
        logs.append(parse(capsys.readouterr().out))
    assert logs[0] == logs[1]


def test_the_reported_numbers_are_those_of_the_model(training):
    history = utils.fit(*training)
    model, _, _, test_batches = training[:4]
    model.eval()
    with torch.no_grad():
        logits = model(utils.normalize(test_batches.images))
    assert history[-1]["test_loss"] == pytest.approx(
        torch.nn.functional.cross_entropy(logits, test_batches.labels).item(), abs=1e-5
    )
    correct = (logits.argmax(1) == test_batches.labels).sum().item()
    assert history[-1]["test_accuracy"] == pytest.approx(100 * correct / 96)


def test_training_loss_and_accuracy_are_means_over_the_images(small, capsys):
    frozen = UltimusNet()
    optimizer = torch.optim.Adam(frozen.parameters(), lr=0.0, fused=True)
    scheduler = utils.one_cycle(optimizer, 1, 7, max_lr=1e-30)
    images, labels = utils.normalize(small[1].images), small[1].labels
    batches = [(images[:90], labels[:90]), (images[90:], labels[90:])]  # of unequal size
    loss, accuracy = utils.train(frozen, CPU, batches, optimizer, scheduler, 1)
    logits = torch.cat([frozen(x) for x, _ in batches])  # still in training mode: each batch its own statistics
    assert loss == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-4)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=1e-3)


def test_training_learns_what_can_be_learned():
    utils.seed_everything(0)
    labels = torch.arange(400) % 10
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)[labels]  # a pattern a class
    model = UltimusNet()
    batches = utils.Batches(images, labels, batch_size=20, shuffle=True, transform=utils.random_flip)
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    history = utils.fit(model, CPU, batches, batches, optimizer, utils.one_cycle(optimizer, 8, 20), 8)
    assert history[-1]["test_accuracy"] > 90


def test_a_dataloader_trains_too(training, small):
    model, device, _, _, optimizer, scheduler, _ = training
    dataset = TensorDataset(utils.normalize(small[1].images), small[1].labels)
    loader = DataLoader(dataset, batch_size=19)  # the last batch has one image
    utils.train(model, device, loader, optimizer, scheduler, 1)


def test_the_log_of_the_stand_in_says_so(training, capsys):
    utils.MARKS["data"] = utils.STAND_IN
    utils.fit(*training)
    assert capsys.readouterr().out.startswith("[synthetic stand-in]\nEPOCH: 1 ")


class Readings(TorchDispatchMode):
    """Counts what makes a GPU wait: values brought to Python, copies between devices, tensors made from lists."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        copies = name == "_to_copy" and (kwargs or {}).get("device") is not None
        self.count += copies or name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "lift_fresh")
        return function(*args, **(kwargs or {}))


def test_no_step_waits_for_the_device(training, small):
    model, device, _, _, optimizer, _, _ = training
    batch = utils.normalize(small[1].images[:8]), small[1].labels[:8]
    counts = {}
    for steps in (8, 40):
        scheduler = utils.one_cycle(optimizer, 1, steps)
        with Readings() as readings:
            utils.train(model, device, steps * [batch], optimizer, scheduler, 1)
        counts[steps] = readings.count
    assert 0 < counts[8] == counts[40] <= 12


def test_cutting_and_augmenting_a_batch_does_not_wait_for_the_device(small):
    next(iter(small[0]))  # mean and deviation are copied once
    with Readings() as readings:
        assert len(list(small[0])) == 6
    assert readings.count == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands freed memory back")
def test_a_training_step_uses_the_memory_that_the_step_before_freed():
    import resource

    def faults(blocks):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(blocks):
            torch.ones(2**24)  # 64 MiB, freed at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    utils.keep_freed_memory()
    faults(3)  # until the heap is large enough
    assert faults(20) < 1_000  # 16,384 pages a block, if it were fetched anew


@pytest.mark.parametrize(
    "most, kept",
    [(2**31, [(-3, 2_000_000_000), (-1, 2_000_000_000)]), (2**25, [(-3, 2**25), (-1, 2_000_000_000)]), (0, [])],
)
def test_the_memory_settings_are_those_that_the_system_accepts_and_none_is_left_alone(monkeypatch, most, kept):
    accepted = []

    def mallopt(parameter, value):
        if parameter == -3 and value > most:
            return 0
        accepted.append((parameter, value))
        return 1

    monkeypatch.setattr(utils.ctypes, "CDLL", lambda name: SimpleNamespace(mallopt=mallopt))
    utils.keep_freed_memory.__wrapped__()
    assert accepted == kept


def test_another_system_keeps_its_memory_as_it_does(monkeypatch):
    monkeypatch.setattr(utils.ctypes, "CDLL", lambda name: SimpleNamespace())
    utils.keep_freed_memory.__wrapped__()


def test_a_gpu_that_this_torch_has_no_kernels_for_is_left_alone_and_it_says_why(monkeypatch, capsys):
    def ones(*size, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(utils.nn, "Conv2d", lambda *sizes, device: torch.nn.Identity())

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "ones", ones)
    assert utils.pick_device() == CPU
    assert "(CUDA error: no kernel image is available for execution on the device)" in capsys.readouterr().out


# --- failures --------------------------------------------------------------------


class Interrupted(utils.Batches):
    """Batches that the keyboard, or another error, stops in the middle of an epoch."""

    epochs = 0

    def __init__(self, batches, epoch, error=KeyboardInterrupt):
        super().__init__(batches.images, batches.labels, batch_size=16)
        self.epoch, self.error = epoch, error

    def __iter__(self):
        self.epochs += 1
        for number, batch in enumerate(super().__iter__()):
            if self.epochs == self.epoch and number == 3:
                raise self.error
            yield batch


def test_interrupted_by_the_keyboard_history_and_weights_are_those_of_the_whole_epochs(training, capsys):
    model, device, train_batches, test_batches, *rest = training
    history = utils.fit(model, device, Interrupted(train_batches, 2), test_batches, *rest)
    assert [row["epoch"] for row in history] == [1]
    assert "Interrupted in epoch 2: history and weights are those of the 1 before it." in capsys.readouterr().out
    assert utils.test(model, device, test_batches)[0] == history[0]["test_loss"]
    assert utils.mark() == "[training stopped in epoch 2]"


def test_interrupted_before_an_epoch_is_whole_the_interrupt_goes_on_and_the_weights_are_the_first(training):
    model, device, train_batches, *rest = training
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(KeyboardInterrupt):
        utils.fit(model, device, Interrupted(train_batches, 1), *rest)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert utils.mark() == "[training stopped in epoch 1]"


def test_any_error_leaves_the_last_whole_epoch_and_tells_the_history(training):
    model, device, train_batches, test_batches, *rest = training
    with pytest.raises(RuntimeError, match="out of memory") as error:
        utils.fit(model, device, Interrupted(train_batches, 2, RuntimeError("out of memory")), test_batches, *rest)
    (row,) = error.value.history
    assert utils.test(model, device, test_batches)[0] == row["test_loss"]


def test_a_training_that_never_began_or_was_stopped_between_two_epochs_is_marked_too(training, monkeypatch):
    utils.fit(*training)
    with pytest.raises(ValueError, match="0 steps left"):
        utils.fit(UltimusNet(), *training[1:])
    assert utils.mark() == "[training not finished]"
    monkeypatch.setattr(copy, "deepcopy", lambda weights: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        utils.fit(*training[:5], utils.one_cycle(training[4], 2, 6), 2)
    assert utils.mark() == "[training not finished]"


def test_a_new_training_is_not_marked_as_stopped_any_more(training, capsys):
    utils.MARKS["training"] = "training stopped in epoch 1"
    utils.fit(*training)
    assert utils.mark() == "" and "stopped" not in capsys.readouterr().out


@pytest.mark.parametrize("pixel", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_epoch_batch_and_lr_and_loses_nothing(training, small, pixel):
    model, device, _, test_batches, optimizer, scheduler, _ = training
    good = [(x, y) for x, y in small[1]]
    bad = list(good)
    bad[4] = (good[4][0].clone(), good[4][1])
    bad[4][0][5, 0, 3, 3] = pixel

    class Spoilt:  # the second epoch has a bad pixel
        epochs = 0

        def __len__(self):
            return 6

        def __iter__(self):
            self.epochs += 1
            return iter(good if self.epochs == 1 else bad)

    spoilt = Spoilt()
    with pytest.raises(FloatingPointError) as error:
        utils.fit(model, device, spoilt, test_batches, optimizer, scheduler, 2)
    lr = utils.learning_rates(2, 6)[10]
    assert f"epoch 2, batch 4, at LR {lr:.6g}" in str(error.value) and "lower max_lr" in str(error.value)
    assert [row["epoch"] for row in error.value.history] == [1]
    assert all(p.isfinite().all() for p in model.state_dict().values())
    assert utils.test(model, device, test_batches)[0] == pytest.approx(error.value.history[0]["test_loss"])


def test_a_schedule_that_is_used_up_is_refused_with_the_cure(training):
    utils.fit(*training)
    with pytest.raises(ValueError, match="0 steps left, 2 epochs take 12: make a new optimizer"):
        utils.fit(*training)


# --- weights ---------------------------------------------------------------------


@pytest.fixture
def working_folder(tmp_path, monkeypatch):
    """An empty working folder, nothing said of where the output goes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ULTIMUS_OUTPUT", raising=False)
    return tmp_path


@pytest.mark.parametrize("folder", ["", "results"])
def test_only_what_comes_of_a_whole_training_on_cifar10_takes_the_place_of_what_is_there(
    working_folder, monkeypatch, folder
):
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setenv("ULTIMUS_OUTPUT", folder)
    assert utils.output().resolve() == working_folder / folder
    for kind in ("data", "training"):
        utils.MARKS[kind] = "not the real thing"
        assert utils.output().resolve() == working_folder / folder / "marked"
        utils.MARKS.clear()


def test_the_output_folder_is_taken_as_a_person_means_it(working_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(working_folder / "home"))
    monkeypatch.setenv("ULTIMUS_OUTPUT", "~/figures")
    assert utils.output() == working_folder / "home" / "figures"
    monkeypatch.setenv("ULTIMUS_OUTPUT", "")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert utils.output().resolve() == working_folder


def test_under_pytest_nbval_alone_the_committed_files_are_left_alone(tmp_path):
    cell = nbformat.v4.new_code_cell("import utils\nprint(utils.output().resolve())", execution_count=1)
    cell.outputs = [nbformat.v4.new_output("stream", text="elsewhere\n")]
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "where.ipynb")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)} | {"ULTIMUS_OUTPUT": ""}
    environment.pop("PYTEST_CURRENT_TEST")
    command = [sys.executable, "-m", "pytest", "--nbval", "where.ipynb", "-vv", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert "ultimus-" in done.stdout and f"+ {tmp_path}" not in done.stdout


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.ENOSPC, errno.EIO, errno.EFBIG])
def test_a_folder_that_no_output_can_be_written_to_is_an_error_that_names_the_variable(tmp_path, monkeypatch, code):
    def refuse(path, data):
        raise OSError(code, "refused")

    monkeypatch.setattr(Path, "write_bytes", refuse)
    with pytest.raises(OSError, match="new/weights.pt can't be written \\(refused\\): set ULTIMUS_OUTPUT") as error:
        utils.save(UltimusNet(), tmp_path / "new" / "weights.pt")
    assert error.value.errno == code
    (tmp_path / "weights.pt").mkdir()
    with pytest.raises(OSError, match="set ULTIMUS_OUTPUT"):
        utils.save(UltimusNet(), tmp_path / "weights.pt")
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="set ULTIMUS_OUTPUT"):
        utils.save(UltimusNet(), tmp_path / "file" / "weights.pt")


def test_a_file_is_replaced_when_the_new_one_is_whole_and_else_stays(tmp_path):
    path = tmp_path / "file.txt"
    for text, fails in (("first", False), ("half", True), ("second", False)):
        with contextlib.suppress(ZeroDivisionError), utils.replacing(path) as new:
            new.write_text(text, encoding="utf-8")
            assert not fails or 1 / 0
        assert path.read_text(encoding="utf-8") == text.replace("half", "first")
        assert list(tmp_path.iterdir()) == [path]


def test_weights_come_back_as_they_were_saved(training, tmp_path, capsys):
    history = utils.fit(*training)
    utils.save(training[0], tmp_path / "new" / "weights.pt")
    assert [p.name for p in (tmp_path / "new").iterdir()] == ["weights.pt"]
    loss, accuracy = utils.test(utils.load(UltimusNet(), tmp_path / "new" / "weights.pt"), CPU, training[3])
    assert (loss, accuracy) == (history[-1]["test_loss"], history[-1]["test_accuracy"])


def test_a_save_that_fails_leaves_the_older_weights_whole(tmp_path, monkeypatch):
    utils.save(UltimusNet(), tmp_path / "weights.pt")
    before = (tmp_path / "weights.pt").read_bytes()

    def full(path, data):
        path.write_text("half", encoding="utf-8")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        utils.save(UltimusNet(), tmp_path / "weights.pt")
    assert (tmp_path / "weights.pt").read_bytes() == before


class Code:
    """A pickle that runs code when it is loaded as pickles usually are."""

    def __reduce__(self):
        return exec, ("raise SystemExit('code in the weights ran')",)


def test_weights_that_cant_be_used_are_refused_and_the_model_keeps_its_own(tmp_path):
    utils.save(UltimusNet(), tmp_path / "whole.pt")
    whole = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "truncated.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "noise.pt").write_bytes(bytes(range(256)))
    (tmp_path / "code.pt").write_bytes(pickle.dumps(Code(), protocol=2))
    torch.save(Code(), tmp_path / "torch_code.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    more_classes = UltimusNet()
    more_classes.fc = torch.nn.Linear(48, 100)
    utils.save(more_classes, tmp_path / "classes.pt")
    utils.save(torch.nn.Linear(2, 2), tmp_path / "linear.pt")
    model = UltimusNet()
    before = io.BytesIO()
    torch.save(model.state_dict(), before)
    for name in ("truncated", "noise", "code", "torch_code"):
        with pytest.raises(ValueError, match=f"{name}.pt is damaged or isn't a file of weights"):
            utils.load(model, tmp_path / f"{name}.pt")
    for name in ("list", "classes", "linear"):
        with pytest.raises(ValueError, match=f"{name}.pt belong to another architecture than UltimusNet"):
            utils.load(model, tmp_path / f"{name}.pt")
    with pytest.raises(FileNotFoundError, match="missing.pt: run the training first"):
        utils.load(model, tmp_path / "missing.pt")
    after = io.BytesIO()
    torch.save(model.state_dict(), after)
    assert before.getvalue() == after.getvalue()


def test_the_log_can_name_the_device():
    assert re.search(r"\S.*, \d+ threads$", utils.device_name(CPU))
