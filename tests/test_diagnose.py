"""What a user relies on in ``diagnose``, for any network of images."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn import BatchNorm1d, BatchNorm2d, Conv2d, Dropout, Flatten, Linear

import utils


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


def mask(x):
    """The mean of a map after which another, of one channel, is computed."""
    return mean(x) + x.mean(1, keepdim=True).sigmoid().mean((2, 3))


def in_place(x):
    x[:, :4].add_(1)
    return mean(x)


CONV = Conv2d(8, 8, 3, padding=1)
STEM = network(Conv2d(3, 8, 3, padding=1), CONV, CONV, nn.ReLU())
HEAD, LAST = Linear(8, 10), Linear(10, 10)
FLAT = network(Flatten(), Linear(768, 10))
ONE, FOUR, FIVE = (network(Flatten(), Linear(768, n), Linear(n, 10)) for n in (1, 4, 5))
EACH_BATCH = BatchNorm1d(10, track_running_stats=False)
EVEN = network(Flatten(), Linear(768, 10, bias=False))  # neighbours that are negated hide
ZERO = Linear(8, 10)
nn.init.zeros_(ZERO.weight), nn.init.zeros_(ZERO.bias)
CASES = [
    ("sees", 7, STEM, mean, HEAD),
    ("sees", 7, STEM, mean, ZERO),
    ("sees", 7, STEM, nn.AdaptiveMaxPool2d(1), Flatten(), HEAD),
    ("sees", 7, STEM, lambda x: x.flatten(2).max(2)[0], HEAD),
    ("sees", 7, STEM, lambda x: x.max(3)[0].max(2)[0], HEAD),
    ("sees", 7, STEM, lambda x: x - x.mean(1, keepdim=True), mean, HEAD),
    ("sees", 7, STEM, lambda x: x.permute(0, 2, 3, 1).mean((1, 2)), HEAD),
    ("sees", 7, STEM, lambda x: x.mean(3, keepdim=True).mean(2, keepdim=True), Flatten(), HEAD),
    ("sees", 7, STEM, mask, HEAD),
    ("sees", 7, STEM, in_place, HEAD),
    ("sees", 7, STEM, lambda x: mean(x) @ torch.eye(8), HEAD),
    ("sees", 8, STEM, lambda x: F.avg_pool2d(F.max_pool2d(x, 2), 8), Flatten(), HEAD),
    ("sees", 7, Conv2d(3, 8, 3, dilation=3), mean, HEAD),
    ("sees", 7, Conv2d(3, 8, 3, stride=2), CONV, mean, HEAD),
    ("directions", 0, STEM, mean, ZERO),
    ("directions", 31, Flatten(), Linear(768, 100)),  # of 32 images
    ("directions", 1, ONE, Dropout(), LAST),
    ("directions", 9, FLAT, lambda x: x + 1e6, BatchNorm1d(10), LAST),
    ("directions", 9, Flatten(), Linear(768, 10).bfloat16()),
    ("mixes", True, FLAT, lambda x: x + 1e-9 * x.mean(0)),
    ("mixes", True, FLAT, lambda x: x.cumsum(0)),
    ("mixes", True, EVEN, lambda x: x @ (x.T @ x)),
    ("mixes", True, EVEN, lambda x: x / x.abs().max()),
    ("mixes", True, EVEN, lambda x: F.normalize(x, dim=0)),
]


@pytest.mark.parametrize("case", CASES)
def test_the_answer_is_right_for_each_kind_of_network(case):
    question, answer, *layers = case
    answers = utils.diagnose(network(*layers), smooth())
    assert getattr(answers, question) == answer


@pytest.mark.parametrize("first", [lambda x: x.mul_(0.5), nn.ReLU(inplace=True)])
def test_the_images_of_the_caller_stay_as_they_are(first):
    images, before = smooth().double(), smooth().double()
    layers = network(first, STEM, mean, HEAD)
    with torch.inference_mode():
        assert utils.diagnose(layers, images).sees == 7
    assert torch.equal(images, before)


def test_a_network_may_keep_a_tensor_of_an_earlier_call():
    layers = network(nn.utils.weight_norm(Conv2d(3, 8, 7)), mean, HEAD)
    layers.map = layers[0](smooth())
    layers.maps = [layers.map]
    assert utils.diagnose(layers, smooth()).sees == 7


def test_where_no_pooled_map_is_found_a_line_says_so_and_the_user_can_name_it(capsys):
    traced = torch.jit.trace(network(STEM, mean, HEAD), smooth())
    assert utils.diagnose(traced, smooth()).sees == 16
    assert "sees: 16 of 16 pixels, as no pooled map was found" in capsys.readouterr().out
    assert utils.diagnose(traced, smooth(), features=lambda images: STEM(images)).sees == 7
    assert "no pooled map" not in capsys.readouterr().out


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 20, 12)])
def test_grey_and_oblong_images_are_fine(shape, capsys):
    layers = network(Conv2d(shape[0], 8, 7), mean, HEAD)
    assert utils.diagnose(layers, smooth(*shape)).sees == 7
    assert f"sees: 7 of {max(shape)} pixels; pools" in capsys.readouterr().out


def test_the_network_is_left_as_it_was():
    layers = network(STEM, BatchNorm2d(8), Dropout().eval(), mean, HEAD)
    before, draws = copy.deepcopy(layers.state_dict()), torch.get_rng_state()
    for features in (None, layers[:2]):
        utils.diagnose(layers, smooth(), features)
    assert torch.equal(torch.get_rng_state(), draws)
    assert torch.get_default_dtype() == torch.float32
    torch.testing.assert_close(layers.state_dict(), before, rtol=0, atol=0)
    assert [layer.training for layer in layers] == [True, True, False, True, True]
    assert all(weight.grad is None for weight in layers.parameters())


ADVICE = [
    ("", Conv2d(3, 16, 8), mean, Linear(16, 10)),
    ("mixes", FLAT, EACH_BATCH),
    ("sees", Conv2d(3, 16, 7), mean, Linear(16, 10)),
    ("directions", FOUR),
    ("", FIVE),
    ("", Flatten(), Linear(768, 100)),  # for 32 images
]


@pytest.mark.parametrize("case", ADVICE)
def test_each_answer_is_printed_and_advice_follows_the_poor_ones(case, capsys):
    poor, *layers = case
    answers = utils.diagnose(network(*layers), smooth())
    lines = capsys.readouterr().out.splitlines()
    for line, name, answer in zip(lines, answers._fields, answers, strict=True):
        assert line.startswith(f"{name}: {answer}")
        assert (";" in line) == (name == poor)


@pytest.mark.parametrize("images", [smooth().byte(), smooth()[0], smooth()[:1]])
def test_other_images_are_refused(images):
    with pytest.raises(ValueError, match="needs normalised float images"):
        utils.diagnose(FLAT, images)


ERRORS = [
    ("are NaN", FLAT, torch.log),
    ("not the same in each call", FLAT, F.dropout),
    (r"not \(N, classes\)", STEM),
    (r"tuple'>, not \(N, classes\)", FLAT, lambda x: (x, x)),
]


@pytest.mark.parametrize("case", ERRORS)
def test_an_error_says_what_is_wrong(case):
    message, *layers = case
    with pytest.raises(ValueError, match=message):
        utils.diagnose(network(*layers), smooth())
