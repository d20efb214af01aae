"""What a user relies on in the figures: they explain themselves, are saved, and are marked where they must be."""

import io

import matplotlib.pyplot as plt
import pytest
import torch

import utils
from model9 import UltimusNet

HISTORY = [
    dict(epoch=e, lr=0.01, train_loss=2 / e, train_accuracy=10 * e, test_loss=3 / e, test_accuracy=9 * e, seconds=1)
    for e in range(1, 5)
]


def figures(small, note=""):
    """One figure of each kind, by the file that it is saved to."""
    torch.manual_seed(0)
    model, (train_batches, test_batches) = UltimusNet(), small
    images, labels = test_batches.images, test_batches.labels
    sample, predicted = utils.normalize(images[:16]), (labels + 1) % 10
    return {
        "augmented_samples.png": utils.plot_samples(train_batches, note),
        "lr_finder.png": utils.find_lr(model, train_batches, 0.015, steps=10, note=note),
        "lr_schedule.png": utils.plot_schedule(utils.learning_rates(2, 10), 10, note),
        "test_train_loss_accuracy.png": utils.plot_history(HISTORY, note),
        "misclassified_imgs.png": utils.plot_misclassified(images, labels, predicted, note),
        "confusion_matrix.png": utils.plot_confusion(labels, predicted, note),
        "attention_maps.png": utils.plot_attention(model, sample, note),
        "block_spectra.png": utils.plot_spectra({"ours": utils.block_spectra(model, sample)}, note),
    }


@pytest.fixture
def output(tmp_path, monkeypatch):
    monkeypatch.setattr(utils, "OUTPUT", tmp_path)
    return tmp_path / "images"


def texts(figure):
    return [t.get_text() for t in figure.findobj(plt.Text)]


def test_every_figure_has_a_title_and_labelled_axes_and_is_saved(small, output):
    for name, figure in figures(small).items():
        plots = [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
        assert figure.get_suptitle() or all(axes.get_title() for axes in plots), name
        for axes in plots:
            assert axes.get_xlabel() and axes.get_ylabel(), name
        assert (output / name).stat().st_size > 5_000
        shown = io.BytesIO()
        figure.savefig(shown, bbox_inches="tight")  # as a notebook does
        assert shown.getvalue() == (output / name).read_bytes(), name
        assert not any("stand-in" in text for text in texts(figure))
    assert plt.get_fignums() == []  # nothing left that a notebook would show twice


def test_every_figure_made_from_the_stand_in_says_so(small, output):
    for name, figure in figures(small, utils.STAND_IN).items():
        assert any("synthetic stand-in" in text for text in texts(figure)), name


def test_training_and_test_curves_share_their_axes_and_show_the_history(output):
    loss, accuracy = utils.plot_history(HISTORY).axes
    for axes in (loss, accuracy):
        assert [line.get_label() for line in axes.lines] == ["train", "test"]
    assert list(loss.lines[1].get_ydata()) == [row["test_loss"] for row in HISTORY]
    assert list(accuracy.lines[0].get_ydata()) == [row["train_accuracy"] for row in HISTORY]


def test_the_schedules_curve_counts_epochs(output):
    (line,) = utils.plot_schedule(utils.learning_rates(2, 10), 10).axes[0].lines
    assert line.get_xdata()[10] == 1 and len(line.get_ydata()) == 20


def test_misclassified_images_are_wrong_ones_and_named(small, output):
    images, labels = small[1].images, small[1].labels
    predicted = labels.clone()
    predicted[[3, 50]] = 9
    figure = utils.plot_misclassified(images, labels, predicted)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["actual: cat\npredicted: truck", "actual: airplane\npredicted: truck"] + 18 * [""]
    assert (figure.axes[1].images[0].get_array() == images[50].permute(1, 2, 0).numpy()).all()


def test_the_confusion_matrix_counts_actual_against_predicted(output):
    figure = utils.plot_confusion(torch.tensor([0, 0, 3]), torch.tensor([0, 5, 5]))
    counts = figure.axes[0].images[0].get_array()
    assert counts[0, 0] == counts[0, 5] == counts[3, 5] == 1 and counts.sum() == 3


def test_the_spectra_show_that_the_default_initialisation_erases_the_images_and_ours_does_not():
    torch.manual_seed(0)
    model, images = UltimusNet(), torch.randn(64, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    ours, default = utils.block_spectra(model, images), utils.block_spectra(utils.with_default_init(model), images)
    assert len(ours) == 4 and len(ours[0]["attention"]) == len(ours[0]["map"]) == 8
    assert ours[3]["spread"] > 0.1 * ours[0]["spread"]
    assert default[3]["spread"] < 1e-3 * default[0]["spread"]
    assert min(row["map"][7] for row in ours) > 10 * max(row["map"][1] for row in default)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_block_spectra_are_those_of_the_matrices():
    torch.manual_seed(0)
    model, images = UltimusNet().train(), torch.randn(8, 3, 32, 32)
    x = utils.block_inputs(model, images)[2]
    row = utils.block_spectra(model, images)[2]
    jacobians = [torch.autograd.functional.jacobian(model.blocks[2], one) for one in x]
    expected = torch.stack([torch.linalg.svdvals(j)[:8] for j in jacobians]).mean(0)
    torch.testing.assert_close(torch.tensor(row["map"]), expected, atol=1e-4, rtol=1e-4)
    attention = torch.stack([torch.linalg.svdvals(am) for am in model.blocks[2].attention(x)]).mean(0)
    torch.testing.assert_close(torch.tensor(row["attention"]), attention, atol=1e-5, rtol=1e-4)
