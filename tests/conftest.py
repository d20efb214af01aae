"""Set-up for all tests, and the small data that they train on."""

import os

os.environ.pop("TQDM_DISABLE", None)  # torch imports tqdm, which reads it once; the log's bars are tested

import matplotlib  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    """No proxy of whoever runs the tests catches what goes to this machine."""
    monkeypatch.setenv("no_proxy", "*")


@pytest.fixture(autouse=True)
def nothing_is_marked():
    """No mark of the data or the training is left for another test."""
    import utils

    yield
    utils.MARKS.clear()


@pytest.fixture
def small():
    """96 images of random pixels, six batches of 16, and Batches of them for training and test."""
    import utils

    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (96, 3, 32, 32), generator=generator, dtype=torch.uint8)
    labels = torch.arange(96) % 10
    return (
        utils.Batches(images, labels, batch_size=16, shuffle=True, transform=utils.augment),
        utils.Batches(images, labels, batch_size=16),
    )


@pytest.fixture
def training(small):
    """A new network with all that ``utils.fit`` wants for two epochs: fit(*training)."""
    import utils
    from model9 import UltimusNet

    utils.seed_everything(0)
    model = UltimusNet()
    optimizer = torch.optim.Adam(model.parameters(), fused=True)
    return model, torch.device("cpu"), *small, optimizer, utils.one_cycle(optimizer, 2, 6), 2
