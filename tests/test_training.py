"""What a user relies on in the schedule and the loops."""

import copy
import re
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.data import DataLoader, TensorDataset

import utils
from model9 import UltimusNet

EPOCH = re.compile(
    r"EPOCH: (?P<epoch>\d+) \(LR: (?P<lr>\S+)\)\n"
    r"Batch_id=\d+ Loss=(?P<train_loss>\d+\.\d{5}) Accuracy=(?P<train_accuracy>\d{1,3}\.\d\d)%: "
    r"100%\|█{10}\| (?P<steps>\d+)/(?P=steps) \[\d\d:\d\d<00:00, +\d+\.\d\d(it/s|s/it)\]\n"
    r"Test set: Average loss: (?P<test_loss>\d+\.\d{4}), Accuracy: \d+/\d+ \((?P<test_accuracy>\d{1,3}\.\d\d)%\)\n\n"
)


def parse(log):
    """The history that a log tells of."""
    log = re.sub(r".*\r(?=[^\n])", "", log)  # what a terminal shows of the progress
    assert EPOCH.sub("", log) == ""
    return [{name: float(value) for name, value in epoch.groupdict().items()} for epoch in EPOCH.finditer(log)]


def test_the_schedule_at_the_published_settings_is_the_published_one():
    published = [0.0014394972305070302, 0.004257988922028121, 0.004425001594387756, 0.0036445328443877553]
    published += [0.0028640640943877554, 0.002083595344387755, 0.0013031265943877547, 0.0005226578443877552]
    rates, _ = utils.plot_schedule(24, 98, 0.005, 1).axes[0].lines
    assert rates.get_ydata()[98 :: 3 * 98] == pytest.approx(published, abs=1e-12)  # from epoch 2


@pytest.mark.parametrize("blocks", [4, 1, 0])
def test_the_blocks_are_the_last_group_of_the_optimizer(net, blocks):
    net.blocks = net.blocks[:blocks]
    others, own = utils.adam(net).param_groups
    assert {id(p) for p in own["params"]} == {id(p) for p in net.blocks.parameters()}
    assert len(others["params"]) + len(own["params"]) == len(list(net.parameters()))


def test_the_lr_finder_leaves_the_model_alone_prints_nothing_and_slows_the_blocks(net, small, capfd):
    before, rates = copy.deepcopy(net.state_dict()), []
    hook = register_optimizer_step_post_hook(lambda adam, *_: rates.append([g["lr"] for g in adam.param_groups]))
    curve, mark = utils.find_lr(net, small[0], max_lr=0.015, block_rate=0.25, steps=20).axes[0].lines
    hook.remove()
    assert capfd.readouterr() == ("", "") and rates[0][0] == pytest.approx(1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert len(curve.get_xdata()) > 5 and list(mark.get_xdata()) == [0.015, 0.015]
    assert [blocks for _, blocks in rates] == pytest.approx([0.25 * others for others, _ in rates])


def test_one_seed_gives_one_log_of_the_published_format_which_tells_the_history_and_of_the_stand_in(small, capsys):
    published = "Batch_id=97 Loss=1.97109 Accuracy=17.78%: 100%|██████████| 98/98 [00:24<00:00,  4.05it/s]\n"
    published += "Test set: Average loss: 1.9128, Accuracy: 1821/10000 (18.21%)\n\n"
    assert parse("EPOCH: 1 (LR: 0.0005)\n" + published)
    logs = []
    for mark in ("", "[synthetic stand-in]\n"):
        utils.on_stand_in = mark != ""
        torch.manual_seed(3)
        model, history = UltimusNet(), []
        optimizer = utils.adam(model)
        utils.fit(model, "cpu", *small, optimizer, utils.one_cycle(optimizer, 2, 6, [0.01, 0.002]), 2, history)
        log, err = capsys.readouterr()
        assert log.startswith(mark) and "Batch_id=5 " in log and "/96 (" in log and err == ""
        logs.append(parse(log.removeprefix(mark)))
    assert logs[0] == logs[1]
    for row, told in zip(history, logs[1], strict=True):
        assert (row["epoch"], row["lr"]) == (told["epoch"], told["lr"])
        assert row.pop("seconds") > 0 and told.pop("steps") == 6
        assert row == pytest.approx(told, abs=6e-3)


def test_losses_and_accuracies_are_means_over_the_images(net, small):
    optimizer = utils.adam(net)
    images, labels = utils.normalize(small[1].images), small[1].labels
    batches = [(images[:90], labels[:90]), (images[90:], labels[90:])]  # of unequal size
    trained = utils.train(net, "cpu", batches, optimizer, utils.one_cycle(optimizer, 1, 10, max_lr=1e-30), 1)
    logits = torch.cat([net(x) for x, _ in batches])  # still in training mode: each batch its own statistics
    tested = utils.test(net, "cpu", batches)
    for result, scores in ((trained, logits), (tested, net(images))):  # now in eval mode
        expected = F.cross_entropy(scores, labels).item(), 100 * (scores.argmax(1) == labels).float().mean().item()
        assert result == pytest.approx(expected, abs=1e-4)


def test_training_learns_what_can_be_learned_also_from_a_dataloader(net):
    labels, history = torch.arange(106) % 10, []
    images = torch.randint(0, 256, (10, 3, 32, 32), dtype=torch.uint8)[labels]  # a pattern a class
    batches = DataLoader(TensorDataset(utils.normalize(images), labels), batch_size=21, shuffle=True)  # last: one image
    optimizer = utils.adam(net)
    utils.fit(net, "cpu", batches, batches, optimizer, utils.one_cycle(optimizer, 6, 6, 0.005), 6, history)
    assert history[-1]["test_accuracy"] > 90


class Readings(TorchDispatchMode):
    """Counts what makes a GPU wait: values brought to Python, copies between devices, tensors made from lists."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        copies = name == "_to_copy" and (kwargs or {}).get("device") is not None
        self.count += copies or name in ("_local_scalar_dense", "is_nonzero", "nonzero", "equal", "lift_fresh")
        return function(*args, **(kwargs or {}))


def test_no_step_and_no_batch_waits_for_the_device(training, small):
    model, device, _, _, optimizer, *_ = training
    batch, counts = next(iter(small[1])), []  # mean and deviation are copied once
    for steps in (8, 24):
        with Readings() as readings:
            utils.train(model, device, steps * [batch], optimizer, utils.one_cycle(optimizer, 1, 24, 0.005), 1)
        counts.append(readings.count)
    assert 0 < counts[0] == counts[1] <= 12
    with Readings() as readings:
        assert len(list(small[0])) == 6
    assert readings.count == 0


def test_a_gpu_that_this_torch_has_no_kernels_for_is_left_alone_and_it_says_why(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn, "Conv2d", Mock(side_effect=RuntimeError("CUDA error: no kernel image is available")))
    assert utils.pick_device() == torch.device("cpu")
    assert "(RuntimeError: CUDA error: no kernel image is available)" in capsys.readouterr().out


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_recorded_step_on_a_gpu_has_the_results_and_gradients_of_the_cpu(net):
    gpu, device = copy.deepcopy(net), torch.device("cuda")
    gpu.to(device, memory_format=utils.memory_format(device))
    batches = [(torch.randn(16, 3, 32, 32), torch.arange(16) % 10) for _ in range(2)]
    there = [[tensor.to(device) for tensor in batch] for batch in batches]
    with torch.backends.cudnn.flags(allow_tf32=False):
        utils.forward_backward(gpu, *there[0])
        replay = utils.record(gpu, *there[0])
        for batch, copied in zip(batches, there):
            pairs = [(utils.forward_backward(net, *batch)[0], replay(*copied)[0])]
            pairs += [(p.grad, other.grad) for p, other in zip(net.parameters(), gpu.parameters())]
            assert all((one - other.cpu()).norm() <= 0.01 * one.norm() + 1e-6 for one, other in pairs)


@pytest.mark.parametrize("error", [KeyboardInterrupt("stop"), FloatingPointError("nan in epoch 2 by step 2 of 6")])
def test_however_a_training_stops_the_reason_is_given_and_finished_epochs_are_in_the_history(training, error):
    model, _, batches, *_, history = training

    def transform(images):
        if history and isinstance(error, KeyboardInterrupt):
            raise error
        if history:
            model.fc.bias.data.fill_(torch.nan)
        return images

    batches.transform = transform
    with pytest.raises(type(error), match=str(error)):
        utils.fit(*training)
    assert [row["epoch"] for row in history] == [1]
