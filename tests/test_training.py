"""What a user relies on in the schedule, the loops and the saved weights."""

import copy
import os
import platform
import re
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import utils
from model9 import UltimusNet

CPU = torch.device("cpu")
ROOT = Path(__file__).parents[1]

# The learning rates at which the 24 epochs of the published log begin.
PUBLISHED_RATES = """
    0.0005 0.0014394972305070302 0.002378994461014061 0.0033184916915210906
    0.004257988922028121 0.0049453140943877556 0.004685157844387756 0.004425001594387756
    0.004164845344387755 0.0039046890943877552 0.0036445328443877553 0.0033843765943877553
    0.003124220344387755 0.0028640640943877554 0.0026039078443877554 0.002343751594387755
    0.002083595344387755 0.001823439094387755 0.001563282844387755 0.0013031265943877547
    0.0010429703443877551 0.0007828140943877552 0.0005226578443877552 0.0002625015943877552
"""

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


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 20), st.integers(10, 100), st.floats(1e-4, 1))
def test_the_rate_rises_to_its_peak_in_the_first_fifth_and_falls_to_a_thousandth(epochs, steps, peak):
    rates = utils.learning_rates(epochs, steps, peak)
    total, top = epochs * steps, rates.index(max(rates))
    assert len(rates) == total
    assert rates[0] == pytest.approx(peak / 10) and rates[-1] == pytest.approx(peak / 1000)
    assert max(rates) <= peak * (1 + 1e-9) and abs(top - (0.2 * total - 1)) <= 1
    assert all(a < b for a, b in zip(rates[:top], rates[1 : top + 1]))
    assert all(a > b for a, b in zip(rates[top:], rates[top + 1 :]))


def test_the_blocks_may_have_a_rate_of_their_own_and_the_log_shows_the_others(training, capsys):
    model, device, train_batches, test_batches, optimizer, _, _, history = training
    others, blocks = optimizer.param_groups
    assert {id(p) for p in blocks["params"]} == {id(p) for p in model.blocks.parameters()}
    assert len(others["params"]) + len(blocks["params"]) == len(list(model.parameters()))
    scheduler = utils.one_cycle(optimizer, 1, 6, [0.01, 0.002])
    assert scheduler.get_last_lr() == pytest.approx([0.001, 0.0002])
    utils.fit(model, device, train_batches, test_batches, optimizer, scheduler, 1, history)
    assert history[0]["lr"] == 0.001 and "EPOCH: 1 (LR: 0.001)" in capsys.readouterr().out


@pytest.mark.parametrize("cycled, expected", [(False, {0.9}), (True, {0.95, 0.85})])
def test_adams_beta1_stays_unless_it_is_to_be_cycled_as_in_the_published_run(cycled, expected):
    optimizer = utils.adam(UltimusNet())
    scheduler, seen = utils.one_cycle(optimizer, 1, 10, cycle_momentum=cycled), []
    for _ in range(10):
        seen.append(round(optimizer.param_groups[0]["betas"][0], 6))
        optimizer.step()
        scheduler.step()
    assert {max(seen), min(seen)} == expected


def test_the_lr_finder_leaves_model_output_and_warnings_clean_and_slows_the_blocks(training, monkeypatch, capfd):
    model, batches = training[0], training[2]
    before = copy.deepcopy(model.state_dict())
    rates, step = [], torch.optim.Adam.step
    monkeypatch.setattr(
        torch.optim.Adam, "step", lambda self: rates.append([g["lr"] for g in self.param_groups]) or step(self)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", DeprecationWarning)  # hidden from users; old matplotlib has some
        figure = utils.find_lr(model, batches, max_lr=0.015, block_rate=0.25, steps=20)
    assert capfd.readouterr() == ("", "")
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    curve, mark = figure.axes[0].lines
    assert len(curve.get_xdata()) > 5 and list(mark.get_xdata()) == [0.015, 0.015]
    assert curve.get_xdata()[0] == pytest.approx(1e-4)
    assert len(rates) > 5 and all(blocks == pytest.approx(0.25 * others) for others, blocks in rates[1:])


# --- loops ----------------------------------------------------------------------


def test_the_log_has_the_published_format_and_parses_back_into_the_history(training, capsys):
    utils.fit(*training)
    log = capsys.readouterr()
    assert log.err == ""
    rows = parse(log.out)
    assert [row["epoch"] for row in rows] == [1, 2]
    for row, told in zip(training[-1], rows, strict=True):
        assert row.pop("seconds") > 0
        assert row["lr"] == told["lr"] and row == pytest.approx(told, abs=6e-3)
    assert "Batch_id=5 " in log.out and "| 6/6 [" in log.out and "/96 (" in log.out


def test_the_published_logs_own_lines_match_this_format():
    assert BAR.fullmatch("Batch_id=97 Loss=1.97109 Accuracy=17.78%: 100%|██████████| 98/98 [00:24<00:00,  4.05it/s]")
    assert TEST.fullmatch("Test set: Average loss: 1.9128, Accuracy: 1821/10000 (18.21%)")


def test_one_seed_gives_one_log(capsys, small):
    logs = []
    for _ in range(2):
        utils.seed_everything(3)
        model = UltimusNet()
        optimizer = utils.adam(model)
        utils.fit(model, CPU, *small, optimizer, utils.one_cycle(optimizer, 2, 6), 2, [])
        logs.append(parse(capsys.readouterr().out))
    assert logs[0] == logs[1]


def test_the_reported_numbers_are_those_of_the_model_also_when_its_weights_come_back(training, tmp_path):
    model, device, _, test_batches, *_, history = training
    utils.fit(*training)
    with torch.no_grad():
        logits = model.eval()(utils.normalize(test_batches.images))
    loss = F.cross_entropy(logits, test_batches.labels).item()
    correct = (logits.argmax(1) == test_batches.labels).sum().item()
    assert history[-1]["test_loss"] == pytest.approx(loss, abs=1e-5)
    assert history[-1]["test_accuracy"] == pytest.approx(100 * correct / 96)
    torch.save(model.state_dict(), tmp_path / "ultimus.pt")
    again = UltimusNet()
    again.load_state_dict(torch.load(tmp_path / "ultimus.pt", weights_only=True))
    assert utils.test(again, device, test_batches) == (history[-1]["test_loss"], history[-1]["test_accuracy"])


def test_training_loss_and_accuracy_are_means_over_the_images(small, capsys):
    model = UltimusNet()
    optimizer = utils.adam(model)
    scheduler = utils.one_cycle(optimizer, 1, 10, max_lr=1e-30)
    images, labels = utils.normalize(small[1].images), small[1].labels
    batches = [(images[:90], labels[:90]), (images[90:], labels[90:])]  # of unequal size
    loss, accuracy = utils.train(model, CPU, batches, optimizer, scheduler, 1)
    logits = torch.cat([model(x) for x, _ in batches])  # still in training mode: each batch its own statistics
    assert loss == pytest.approx(F.cross_entropy(logits, labels).item(), abs=1e-4)
    assert accuracy == pytest.approx(100 * (logits.argmax(1) == labels).float().mean().item(), abs=1e-3)


def test_training_learns_what_can_be_learned():
    utils.seed_everything(0)
    labels = torch.arange(400) % 10
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)[labels]  # a pattern a class
    model, history = UltimusNet(), []
    batches = utils.Batches(images, labels, batch_size=20, shuffle=True, transform=utils.random_flip)
    optimizer = utils.adam(model)
    utils.fit(model, CPU, batches, batches, optimizer, utils.one_cycle(optimizer, 5, 20), 5, history)
    assert history[-1]["test_accuracy"] > 90


def test_a_dataloader_trains_too(training, small):
    model, device, _, test_batches, optimizer, scheduler, _, _ = training
    before = utils.test(model, device, test_batches)
    dataset = TensorDataset(utils.normalize(small[1].images), small[1].labels)
    utils.train(model, device, DataLoader(dataset, batch_size=19), optimizer, scheduler, 1)  # the last batch has one
    assert utils.test(model, device, test_batches) != before


def test_the_log_of_the_stand_in_says_so(training, capsys):
    utils.output = utils.output / utils.STAND_IN
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


def test_no_step_and_no_batch_waits_for_the_device(training, small):
    model, device, _, _, optimizer, *_ = training
    batch = next(iter(small[1]))  # mean and deviation are copied once
    counts = {}
    for steps in (8, 24):
        scheduler = utils.one_cycle(optimizer, 1, steps)
        with Readings() as readings:
            utils.train(model, device, steps * [batch], optimizer, scheduler, 1)
        counts[steps] = readings.count
    assert 0 < counts[8] == counts[24] <= 12
    with Readings() as readings:
        assert len(list(small[0])) == 6
    assert readings.count == 0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc hands freed memory back")
def test_a_training_step_uses_the_memory_that_the_step_before_freed():
    import resource

    def faults(blocks):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(blocks):
            torch.ones(2**22)  # 16 MiB, freed at once
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    utils.keep_freed_memory()
    faults(3)  # until the heap is large enough
    assert faults(20) < 1_000  # 4,096 pages a block, if it were fetched anew


def test_a_gpu_that_this_torch_has_no_kernels_for_is_left_alone_and_it_says_why(monkeypatch, capsys):
    def convolution(*sizes, device):
        raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn, "Conv2d", convolution)
    assert utils.pick_device() == CPU
    assert "(CUDA error: no kernel image is available for execution on the device)\n" in capsys.readouterr().out


def test_the_log_can_name_the_device():
    assert re.search(r"\S.*, \d+ threads$", utils.device_name(CPU))


# --- failures -------------------------------------------------------------------


class SecondTime(list):
    """Batches with a fault in step 5 of the second epoch: a pixel of that value, or an exception."""

    epochs = 0

    def __init__(self, batches, fault):
        super().__init__(batches)
        self.fault = fault

    def __iter__(self):
        self.epochs += 1
        for step, (images, labels) in enumerate(super().__iter__(), start=1):
            if (self.epochs, step) == (2, 5):
                if isinstance(self.fault, BaseException):
                    raise self.fault
                images = torch.full_like(images, self.fault)
            yield images, labels


@pytest.mark.parametrize(
    "fault, raised, message",
    [
        (KeyboardInterrupt(), KeyboardInterrupt, ""),
        (RuntimeError("out of memory"), RuntimeError, "out of memory"),
        (float("nan"), FloatingPointError, "nan in epoch 2 by step 6 of 6, at LR 5e-06: lower max_lr"),
        (float("inf"), FloatingPointError, "nan in epoch 2 by step 6 of 6, at LR 5e-06: lower max_lr"),
    ],
)
def test_however_a_training_stops_the_finished_epochs_are_in_the_history(training, small, fault, raised, message):
    model, device, _, test_batches, *rest, history = training
    with pytest.raises(raised, match=message):
        utils.fit(model, device, SecondTime(small[1], fault), test_batches, *rest, history)
    assert [row["epoch"] for row in history] == [1]


def test_under_pytest_nbval_the_committed_files_are_left_alone(tmp_path, monkeypatch):
    cell = nbformat.v4.new_code_cell("import utils; assert utils.output.name.startswith('ultimus-')", execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "where.ipynb")
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    assert runpy.run_path(str(ROOT / "utils.py"))["output"] == Path(".")
    command = [sys.executable, "-m", "pytest", "--nbval", "where.ipynb", "-p", "no:cacheprovider"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout
