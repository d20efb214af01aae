"""What a user relies on in ``diagnose``, for any network of images."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import BatchNorm1d, Conv2d, Dropout, Flatten, Linear

import utils
from model9 import UltimusNet


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def network(*layers):
    """Of modules and functions."""
    modules = [x if isinstance(x, nn.Module) else Apply(x) for x in layers]
    return nn.Sequential(*modules)


def smooth(channels=3, height=16, width=16):
    """Images of large shapes, as photographs have."""
    torch.manual_seed(0)
    coarse = torch.randn(32, channels, 4, 4)
    return F.interpolate(coarse, (height, width), mode="bicubic")


def mean(x):
    return x.mean((2, 3))


def excite(x):
    return x * mean(x)[:, :, None, None]


class ViT(nn.TransformerEncoderLayer):
    """Of patches and a class token that starts at zero, as torchvision's."""

    def forward(self, maps):
        token = maps.new_zeros(len(maps), 1, 8)
        tokens = torch.cat([token, maps.flatten(2).mT], 1)
        return super().forward(tokens)[:, 0]


CONV = Conv2d(8, 8, 3, padding=1)
STEM = network(Conv2d(3, 8, 3, padding=1), CONV, CONV, nn.ReLU())
HEAD, LAST = Linear(8, 10), Linear(10, 10)
FLAT, ONE = network(Flatten(), Linear(768, 10)), network(Flatten(), Linear(768, 1), Linear(1, 10))
EACH_BATCH = BatchNorm1d(10, track_running_stats=False)
CASES = [
    ("sees", 7, STEM, mean, HEAD),
    ("sees", 7, STEM, nn.AdaptiveMaxPool2d(1), Flatten(), HEAD),
    ("sees", 7, Conv2d(3, 8, 3, dilation=3), mean, HEAD),
    ("sees", 7, Conv2d(3, 8, 3, stride=2), CONV, mean, HEAD),
    ("sees", 16, STEM, excite, mean, HEAD),
    ("sees", 16, STEM, excite, Flatten(), Linear(2048, 10)),
    ("sees", 16, FLAT),
    ("sees", 16, Conv2d(3, 8, 4, 4), ViT(8, 2, 8, batch_first=True), HEAD),
    ("directions", 4, FLAT, Linear(10, 5)),
    ("directions", 11, Flatten(), Linear(768, 12)),
    ("directions", 1, ONE, Dropout(), LAST),
    ("directions", 0, FLAT, torch.zeros_like, LAST),
    ("directions", 9, FLAT, lambda x: x + 1e6, BatchNorm1d(10), LAST),
    ("directions", 9, Flatten(), Linear(768, 10).bfloat16()),
    ("mixes", True, FLAT, lambda x: x @ (x.T @ x)),
    ("mixes", True, FLAT, lambda x: x.cumsum(0)),
]


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_right_for_each_kind_of_network(case):
    question, answer, *layers = case
    answers = utils.diagnose(network(*layers), smooth())
    assert getattr(answers, question) == answer


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 12, 20)])
def test_grey_and_oblong_images_are_fine(shape):
    layers = network(Conv2d(shape[0], 8, 7), mean, HEAD)
    assert utils.diagnose(layers, smooth(*shape)).sees == 7


@pytest.mark.parametrize("seed", [1, 2])
def test_our_network_has_the_answers_of_the_readme(seed):
    images = smooth(3, 32, 32)
    torch.manual_seed(seed)
    networks = {8: UltimusNet()}
    networks[0] = utils.with_default_init(networks[8])
    networks[9] = utils.with_default_init(UltimusNet(utils.Residual))
    for directions, each in networks.items():
        assert utils.diagnose(each, images) == (False, 32, directions)


def test_directions_are_counted_as_defined():
    sizes = torch.logspace(0, -5, 10)
    scaled = network(FLAT, lambda x: (x + 20) * sizes)
    images = smooth()
    logits = scaled(images).detach().numpy()
    logits -= logits.mean(1, keepdims=True)
    values = np.linalg.svd(logits - logits.mean(0), compute_uv=False)
    expected = np.sum(values > 0.001 * np.linalg.norm(logits))
    assert utils.diagnose(scaled, images).directions == expected


def test_the_network_is_left_as_it_was():
    layers = network(FLAT, BatchNorm1d(10), Dropout().eval())
    before = copy.deepcopy(layers.state_dict())
    utils.diagnose(layers, smooth())
    torch.testing.assert_close(layers.state_dict(), before, rtol=0, atol=0)
    assert [layer.training for layer in layers] == [True, True, False]
    assert all(weight.grad is None for weight in layers.parameters())


ADVICE = [
    ("", Conv2d(3, 16, 9), mean, Linear(16, 10)),
    ("mixes", FLAT, EACH_BATCH),
    ("sees", Conv2d(3, 16, 7), mean, Linear(16, 10)),
    ("directions", ONE),
]


@pytest.mark.parametrize("case", ADVICE)
def test_each_answer_is_printed_and_advice_follows_the_poor_ones(case, capsys):
    poor, *layers = case
    answers = utils.diagnose(network(*layers), smooth())
    lines = capsys.readouterr().out.splitlines()
    for line, name, answer in zip(lines, answers._fields, answers, strict=True):
        assert line.startswith(f"{name}: {answer}")
        assert (";" in line) == (name == poor)


@pytest.mark.parametrize("images", [smooth().byte(), smooth()[0]])
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="wants normalised float images"):
        utils.diagnose(FLAT, images)


ERRORS = [
    (ValueError, "are NaN", FLAT, torch.log),
    (ValueError, "not the same in each call", FLAT, F.dropout),
    (ValueError, r"not \(N, classes\)", STEM),
    (RuntimeError, "shapes cannot be multiplied", Flatten(), HEAD),  # the network's own
]


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_says_what_is_wrong(case):
    kind, message, *layers = case
    with pytest.raises(kind, match=message):
        utils.diagnose(network(*layers), smooth())
