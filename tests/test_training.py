"""What a user relies on in the schedule and the loops."""

import copy
import re
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook

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
    return [
        {name: float(value) for name, value in epoch.groupdict().items()}
        for epoch in EPOCH.finditer(log)
    ]


def test_the_schedule_at_the_published_settings_is_the_published_one():
    published = [
        0.0014394972305070302,
        0.004257988922028121,
        0.004425001594387756,
        0.0036445328443877553,
    ]
    published += [
        0.0028640640943877554,
        0.002083595344387755,
        0.0013031265943877547,
        0.0005226578443877552,
    ]
    rates, _ = utils.plot_schedule(24, 98, 0.005, 1).axes[0].lines
    assert rates.get_ydata()[98 :: 3 * 98] == pytest.approx(published, abs=1e-12)  # from epoch 2


def test_the_blocks_are_the_last_group_of_the_optimizer(net):
    others, own = utils.adam(net).param_groups
    assert {id(p) for p in own["params"]} == {id(p) for p in net.blocks.parameters()}
    assert len(others["params"]) + len(own["params"]) == len(list(net.parameters()))


def test_the_lr_finder_leaves_the_model_alone_prints_nothing_and_slows_the_blocks(
    net, small, capfd
):
    before, rates = copy.deepcopy(net.state_dict()), []
    hook = register_optimizer_step_post_hook(
        lambda adam, *_: rates.append([g["lr"] for g in adam.param_groups])
    )
    curve, mark = (
        utils.find_lr(net, small[0], max_lr=0.015, block_rate=0.25, steps=20).axes[0].lines
    )
    hook.remove()
    assert capfd.readouterr() == ("", "") and rates[0][0] == pytest.approx(1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert len(curve.get_xdata()) > 5 and list(mark.get_xdata()) == [0.015, 0.015]
    assert [blocks for _, blocks in rates] == pytest.approx([0.25 * others for others, _ in rates])


def test_one_seed_gives_one_log_of_the_published_format_which_tells_the_history_and_of_the_stand_in(
    small, capsys
):
    published = "Batch_id=97 Loss=1.97109 Accuracy=17.78%: 100%|██████████| 98/98 [00:24<00:00,  4.05it/s]\n"
    published += "Test set: Average loss: 1.9128, Accuracy: 1821/10000 (18.21%)\n\n"
    assert parse("EPOCH: 1 (LR: 0.0005)\n" + published)
    logs = []
    for mark in ("", "[synthetic stand-in]\n"):
        utils.on_stand_in = mark != ""
        torch.manual_seed(3)
        model, history = UltimusNet(), []
        optimizer = utils.adam(model)
        utils.fit(
            model,
            "cpu",
            *small,
            optimizer,
            utils.one_cycle(optimizer, 2, 6, [0.01, 0.002]),
            2,
            history,
        )
        log, err = capsys.readouterr()
        assert log.startswith(mark) and "Batch_id=5 " in log and "/96 (" in log and err == ""
        logs.append(parse(log.removeprefix(mark)))
    assert logs[0] == logs[1] and optimizer.param_groups[1]["betas"] == (0.9, 0.999)
    for row, logged in zip(history, logs[1], strict=True):
        assert (row["epoch"], row["lr"]) == (logged["epoch"], logged["lr"])
        assert row.pop("seconds") > 0 and logged.pop("steps") == 6
        assert row == pytest.approx(logged, abs=6e-3)


def test_losses_and_accuracies_are_means_over_the_images(net, small):
    optimizer = utils.adam(net)
    images, labels = utils.normalize(small[1].images), small[1].labels
    batches = [(images[:90], labels[:90]), (images[90:], labels[90:])]  # of unequal size
    trained = utils.train(
        net, "cpu", batches, optimizer, utils.one_cycle(optimizer, 1, 10, max_lr=1e-30), 1
    )
    logits = torch.cat(
        [net(x) for x, _ in batches]
    )  # still in training mode: each batch its own statistics
    tested = utils.test(net, "cpu", batches)
    for result, scores in ((trained, logits), (tested, net.eval()(images))):
        expected = (
            F.cross_entropy(scores, labels).item(),
            100 * (scores.argmax(1) == labels).float().mean().item(),
        )
        assert result == pytest.approx(expected, abs=1e-4)


def test_a_gpu_that_this_torch_has_no_kernels_for_is_left_alone_and_it_says_why(
    monkeypatch, capsys
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.nn,
        "Conv2d",
        Mock(side_effect=RuntimeError("CUDA error: no kernel image is available")),
    )
    assert utils.pick_device() == torch.device("cpu")
    assert "(RuntimeError: CUDA error: no kernel image is available)" in capsys.readouterr().out


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt("stop"), FloatingPointError("nan in epoch 2 by step 2 of 6")]
)
def test_however_a_training_stops_the_reason_is_given_and_finished_epochs_are_in_the_history(
    training, error
):
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
    with pytest.raises(
        ValueError, match="has been used: make model, optimizer, scheduler and history anew"
    ):
        utils.fit(*training)
    history.clear()
    with pytest.raises(ValueError, match="has been used"):
        utils.fit(*training)  # the scheduler is in the middle of its cycle


def test_what_has_no_batches_or_too_few_steps_is_refused(net, training):
    with pytest.raises(ValueError, match="no batches to predict"):
        utils.predict(net, "cpu", [])
    with pytest.raises(ValueError, match="no batches to train on"):
        utils.train(net, "cpu", [], *training[4:6], 1)
    with pytest.raises(ValueError, match="got 5 steps in all"):
        utils.one_cycle(training[4], 1, 5, 0.01)


def test_under_the_callers_autocast_each_step_computes_with_the_weights_of_the_last(net, small):
    losses, curves = [], []
    for model, cached in ((copy.deepcopy(net), True), (net, False)):
        optimizer = utils.adam(model)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            curves.append(
                list(utils.find_lr(model, small[1], 0.01, 1, 8).axes[0].lines[0].get_ydata())
            )
            losses.append(
                utils.train(
                    model, "cpu", small[1], optimizer, utils.one_cycle(optimizer, 1, 6, 0.01), 1
                )[0]
            )
    assert losses[0] == losses[1] and curves[0] == curves[1]
