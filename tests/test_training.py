"""What a user relies on in the schedule and the loops."""

import copy
import re
import time
from unittest.mock import Mock

import pytest
import torch
import torch.nn.functional as F
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.testing import assert_close

import utils

EPOCH = re.compile(
    r"EPOCH: (?P<epoch>\d+) \(LR: (?P<lr>\S+)\)\n"
    r"Batch_id=(?P<last>\d+) Loss=(?P<train_loss>\d+\.\d{5}) "
    r"Accuracy=(?P<train_accuracy>\d{1,3}\.\d\d)%: "
    r"100%\|█{10}\| (?P<steps>\d+)/(?P=steps) \[\d\d:\d\d<00:00, +\d+\.\d\d(it/s|s/it)\] *\n"
    r"Test set: Average loss: (?P<test_loss>\d+\.\d{4}), "
    r"Accuracy: (?P<right>\d+)/\d+ \((?P<test_accuracy>\d{1,3}\.\d\d)%\)\n\n"
)
PUBLISHED = """\
EPOCH: 1 (LR: 0.0005)
Batch_id=97 Loss=1.97109 Accuracy=17.78%: 100%|██████████| 98/98 [00:24<00:00,  4.05it/s]
Test set: Average loss: 1.9128, Accuracy: 1821/10000 (18.21%)

"""


def parse(log):
    """The epochs that a log tells of, and what else it says."""
    log = re.sub(r".*\r(?=[^\n])", "", log)  # what a terminal shows of the progress
    return [epoch.groupdict() for epoch in EPOCH.finditer(log)], EPOCH.sub("", log)


@pytest.fixture
def training(net, small):
    """What ``utils.fit`` takes for two epochs."""
    optimizer = utils.adam(net)
    scheduler = utils.one_cycle(optimizer, 2, 5, [0.005, 0.001])
    return net, "cpu", *small, optimizer, scheduler, 2


# --- Optimizer and schedule -----------------------------------------------------------------------


def test_the_schedule_at_the_published_settings_is_the_published_one():
    optimizer = torch.optim.SGD([torch.zeros(1)])
    scheduler, rates = utils.one_cycle(optimizer, 24, 98, 0.005), []
    for _ in range(24 * 98):
        rates += scheduler.get_last_lr()
        optimizer.step()
        scheduler.step()
    published = [0.0014394972305, 0.0044250015944, 0.0028640640944, 0.0013031265944]
    assert rates[98 :: 6 * 98] == pytest.approx(published, abs=1e-12)  # of epoch 2, 8, 14, 20
    assert optimizer.param_groups[0]["momentum"] == 0  # it is not cycled


def test_fewer_than_six_steps_are_refused(net):
    with pytest.raises(ValueError, match="got 5 steps in all"):
        utils.one_cycle(utils.adam(net), 1, 5, 0.01)


def test_adam_is_pytorchs_and_the_blocks_are_its_last_group(net):
    reference = torch.optim.Adam(net.parameters(), fused=True).param_groups[0]
    others, blocks = utils.adam(net).param_groups
    assert blocks.pop("params") == [*net.blocks.parameters()]
    assert len(others.pop("params")) == len(reference.pop("params")) - 4 * 8
    assert others == blocks == reference


# --- LR finder ------------------------------------------------------------------------------------


def test_the_lr_finder_shows_the_losses_from_1e_minus_4_on_and_max_lr_and_changes_nothing(
    net, small, capfd
):
    before, used = copy.deepcopy(net.state_dict()), []
    note = lambda adam, *_: used.extend(group["lr"] for group in adam.param_groups)  # noqa: E731
    hook = register_optimizer_step_post_hook(note)
    curve, mark = utils.find_lr(net, small[1], 0.015, 0.25, steps=13).axes[0].lines
    hook.remove()
    rates = [1e-4 * 1e4 ** (step / 12) for step in range(8)]  # 1.0 in the last step
    assert curve.get_xdata() == pytest.approx(rates) == used[:16:2]
    assert used[1::2] == pytest.approx([0.25 * rate for rate in used[::2]])  # of the blocks
    assert mark.get_xdata() == [0.015, 0.015]
    assert capfd.readouterr() == ("", "")
    assert_close(net.state_dict(), before, atol=0, rtol=0)
    images, labels = next(iter(small[1]))
    assert curve.get_ydata()[0] == pytest.approx(F.cross_entropy(net(images), labels).item())


@pytest.mark.parametrize("steps, bias", [(5, 0), (10, torch.nan)])
def test_the_lr_finder_refuses_five_steps_and_losses_of_nan(net, small, steps, bias):
    net.fc.bias.data.fill_(bias)
    with pytest.raises(ValueError, match="over five steps with finite losses"):
        utils.find_lr(net, small[0], 0.015, 0.25, steps)


# --- Loops ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mark", ["", "[synthetic stand-in]\n"])
def test_the_log_has_the_published_format_and_tells_the_history(
    training, monkeypatch, capsys, mark
):
    monkeypatch.setattr(utils.CIFAR10, "replaced", bool(mark))
    started = time.perf_counter()
    history = list(utils.fit(*training))
    assert 0 < sum(row.pop("seconds") for row in history) <= time.perf_counter() - started
    log, error = capsys.readouterr()
    assert (parse(PUBLISHED)[1], parse(log)[1], error) == ("", mark, "")
    for row, logged in zip(history, parse(log)[0], strict=True):
        assert (logged.pop("steps"), logged.pop("last")) == ("5", "4")
        assert logged.pop("lr") == str(row.pop("lr"))
        logged = {name: float(value) for name, value in logged.items()}
        assert logged.pop("right") == round(0.96 * row["test_accuracy"])
        assert row == pytest.approx(logged, rel=6e-3)


def test_a_training_is_that_of_a_plain_loop_under_the_same_seed(training):
    model, _, batches, *_ = training
    plain = copy.deepcopy(model).train()
    optimizer = utils.adam(plain)
    scheduler = utils.one_cycle(optimizer, 2, 5, [0.005, 0.001])
    torch.manual_seed(3)
    for images, labels in [*batches, *batches]:
        optimizer.zero_grad()
        F.cross_entropy(plain(images), labels).backward()
        optimizer.step()
        scheduler.step()
    torch.manual_seed(3)
    history = list(utils.fit(*training))
    for found, expected in zip(model.parameters(), plain.parameters()):
        assert_close(found, expected)
    assert [row["lr"] for row in history] == pytest.approx([0.0005, 0.0025025])


@pytest.fixture
def uneven(small):
    """A batch of 90 images and one of 6."""
    return utils.Batches(small[1].images, small[1].labels, batch_size=90)


def measure(net, batches):
    """Mean loss and accuracy over the images, in the mode of the network."""
    logits = torch.cat([net(images) for images, _ in batches])
    right = logits.argmax(1) == batches.labels
    loss = F.cross_entropy(logits, batches.labels).item()
    return pytest.approx((loss, 100 * right.float().mean().item()), abs=1e-4)


class Fewer(list):
    """Batches that are fewer than their length."""

    def __len__(self):
        return 9


@pytest.mark.parametrize("kind", [list, Fewer])
def test_training_results_are_means_over_the_images_in_training_mode(net, uneven, kind):
    optimizer = utils.adam(net)
    scheduler = utils.one_cycle(optimizer, 1, 10, max_lr=1e-30)
    results = utils.train(net.eval(), "cpu", kind(uneven), optimizer, scheduler, 1)
    assert results == measure(net.train(), uneven)


def test_test_results_are_means_over_the_images_in_eval_mode(net, uneven):
    results = utils.test(net.train(), "cpu", uneven)
    assert results == measure(net.eval(), uneven)


def test_a_part_that_the_user_froze_stays_in_eval_mode(net, small):
    net.stem.eval()
    utils.predict(net, "cpu", small[1])
    assert net.training and not any(module.training for module in net.stem.modules())


STOPS = [KeyboardInterrupt("stop"), FloatingPointError("nan by epoch 2, step 2, LR")]


@pytest.mark.parametrize("error", STOPS)
def test_a_training_that_stops_says_why_and_leaves_the_finished_epochs(training, error):
    model, _, batches, *_ = training
    history = []

    def transform(images):
        if history and error is STOPS[0]:
            raise error
        if history:
            model.fc.bias.data.fill_(torch.nan)
        return images

    batches.transform = transform
    with pytest.raises(type(error), match=str(error)):
        for row in utils.fit(*training):
            history.append(row)
    assert [row["epoch"] for row in history] == [1]


def test_fit_refuses_a_scheduler_that_does_not_fit_or_is_used(training):
    *others, scheduler, _ = training
    with pytest.raises(ValueError, match="the scheduler has 10 steps, the training 15"):
        next(utils.fit(*others, scheduler, 3))
    scheduler.step()
    with pytest.raises(ValueError, match="make model, optimizer and scheduler again"):
        next(utils.fit(*training))


def test_under_the_callers_autocast_each_step_has_the_weights_of_the_last(net, small):
    losses = []
    for cached in (True, False):
        model = copy.deepcopy(net)
        optimizer = utils.adam(model)
        scheduler = utils.one_cycle(optimizer, 1, 6, 0.01)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cached):
            utils.test(model, "cpu", small[1])
            losses += utils.train(model, "cpu", small[1], optimizer, scheduler, 1)
    assert losses[:2] == losses[2:]


@pytest.mark.parametrize("error", [None, RuntimeError("no kernel image is available")])
def test_a_gpu_is_used_if_a_convolution_works_on_it_and_else_it_says_why(
    monkeypatch, capsys, error
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn, "Conv2d", Mock(side_effect=error))
    monkeypatch.setattr(torch, "ones", Mock())
    assert utils.pick_device() == torch.device("cpu" if error else "cuda")
    assert capsys.readouterr().out.endswith(f"(RuntimeError: {error})\n" if error else "")


def test_pytorchs_initialisation_is_given_to_a_copy(net):
    net.map = net(torch.randn(2, 3, 32, 32))  # kept by a student, for a plot
    before, other = net.fc.weight.clone(), utils.with_default_init(net)
    assert torch.equal(net.fc.weight, before)
    assert 0.9 * 48**-0.5 < other.fc.weight.abs().max() < 48**-0.5
    assert torch.equal(other.stem[0].conv.weight, net.stem[0].conv.weight)
