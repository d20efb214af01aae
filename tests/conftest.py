"""Set-up for all tests, and the small network and data that they use."""

import matplotlib
import pytest
import torch

import utils
from model9 import UltimusNet

matplotlib.use("Agg")
torch.set_num_threads(1)  # as fast for little data, and far faster when the cores have other work


@pytest.fixture(autouse=True)
def surroundings(monkeypatch, tmp_path):
    """No proxy catches what goes to this machine, and each test has an output folder of its own."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setenv("ULTIMUS_OUTPUT", str(tmp_path))
    monkeypatch.setattr(utils.CIFAR10, "replaced", False, raising=False)


@pytest.fixture
def net():
    """A new network whose BatchNorm has seen images, in training mode."""
    torch.manual_seed(0)
    net = UltimusNet()
    net(torch.randn(64, 3, 32, 32))
    return net


@pytest.fixture
def small():
    """96 images of random pixels: Batches of 20 for training and for the test."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (96, 3, 32, 32), generator=generator, dtype=torch.uint8)
    options = dict(images=images, labels=torch.arange(96) % 10, batch_size=20)
    train = utils.Batches(**options, shuffle=True, transform=utils.random_crop)
    return train, utils.Batches(**options)
