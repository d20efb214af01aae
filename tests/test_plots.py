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


def figures(small):
    """One figure of each kind, by the file that it is saved to."""
    torch.manual_seed(0)
    model, (train_batches, test_batches) = UltimusNet(), small
    images, labels = test_batches.images, test_batches.labels
    sample, predicted = utils.normalize(images[:16]), (labels + 1) % 10
    return {
        "augmented_samples.png": utils.plot_samples(train_batches),
        "lr_finder.png": utils.find_lr(model, train_batches, 0.015, 0.2, steps=10),
        "lr_schedule.png": utils.plot_schedule(utils.learning_rates(2, 10), 10, 0.2),
        "test_train_loss_accuracy.png": utils.plot_history(HISTORY),
        "misclassified_imgs.png": utils.plot_misclassified(images, labels, predicted),
        "confusion_matrix.png": utils.plot_confusion(labels, predicted),
        "attention_maps.png": utils.plot_attention(model, images[:3], labels[:3]),
        "block_spectra.png": utils.plot_blocks({"ours": model}, sample),
    }


def texts(figure):
    return [t.get_text() for t in figure.findobj(plt.Text)]


def test_every_figure_has_a_title_and_labelled_axes_and_is_saved(small):
    for name, figure in figures(small).items():
        plots = [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
        assert figure.get_suptitle() or all(axes.get_title() for axes in plots), name
        for axes in plots:
            assert axes.get_xlabel() and axes.get_ylabel(), name
        assert (utils.output / "images" / name).stat().st_size > 5_000
        shown = io.BytesIO()
        figure.savefig(shown, bbox_inches="tight")  # as a notebook does
        assert shown.getvalue() == (utils.output / "images" / name).read_bytes(), name
        assert not any("stand-in" in text for text in texts(figure))
    assert plt.get_fignums() == []  # nothing left that a notebook would show twice


def test_every_figure_made_from_the_stand_in_says_so(small):
    utils.output = utils.output / utils.STAND_IN
    for name, figure in figures(small).items():
        assert "[synthetic stand-in]" in texts(figure), name


def test_training_and_test_curves_share_their_axes_and_show_the_history():
    loss, accuracy = utils.plot_history(HISTORY).axes
    for axes in (loss, accuracy):
        assert [line.get_label() for line in axes.lines] == ["train", "test"]
    assert list(loss.lines[1].get_ydata()) == [row["test_loss"] for row in HISTORY]
    assert list(accuracy.lines[0].get_ydata()) == [row["train_accuracy"] for row in HISTORY]


def test_the_schedules_curves_count_epochs_and_show_the_blocks_own_rate():
    others, blocks = utils.plot_schedule(utils.learning_rates(2, 10), 10, 0.2).axes[0].lines
    assert others.get_xdata()[10] == 1 and len(others.get_ydata()) == 20
    assert blocks.get_ydata() == pytest.approx(0.2 * others.get_ydata())


def test_misclassified_images_are_wrong_ones_and_named(small):
    images, labels = small[1].images, small[1].labels
    predicted = labels.clone()
    predicted[[3, 50]] = 9
    figure = utils.plot_misclassified(images, labels, predicted)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == ["actual: cat\npredicted: truck", "actual: airplane\npredicted: truck"] + 18 * [""]
    assert (figure.axes[1].images[0].get_array() == images[50].permute(1, 2, 0).numpy()).all()


def test_the_confusion_matrix_counts_actual_against_predicted():
    figure = utils.plot_confusion(torch.tensor([0, 0, 3]), torch.tensor([0, 5, 5]))
    counts = figure.axes[0].images[0].get_array()
    assert counts[0, 0] == counts[0, 5] == counts[3, 5] == 1 and counts.sum() == 3


def test_the_attention_maps_shown_are_those_of_the_images_on_a_scale_with_uniform_in_its_middle(small):
    torch.manual_seed(0)
    model = UltimusNet().eval()
    images, labels = small[1].images[:2], small[1].labels[:2]
    grid = utils.plot_attention(model, images, labels).axes[:10]
    x = model.blocks[0](model.features(utils.normalize(images)))
    shown = grid[5 + 2].images[0]  # second image, second block
    torch.testing.assert_close(torch.tensor(shown.get_array()), model.blocks[1].attend(x)[0][1].detach())
    assert sum(shown.get_clim()) / 2 == pytest.approx(1 / 8 / 8**0.5)


def test_the_spectrum_is_that_of_the_map_from_x_to_the_logits():
    torch.manual_seed(0)
    model, images = UltimusNet().eval(), torch.randn(4, 3, 32, 32)
    head = torch.nn.Sequential(model.blocks, model.fc)
    jacobians = [torch.autograd.functional.jacobian(head, x) for x in model.features(images).detach()]
    expected = torch.stack([torch.linalg.svdvals(j - j.mean(0))[:9] for j in jacobians]).mean(0)
    torch.testing.assert_close(torch.tensor(utils.spectrum(model, images)), expected, atol=1e-5, rtol=1e-4)


def test_the_linear_share_is_all_of_a_head_that_is_linear_and_less_of_one_that_is_not(small):
    torch.manual_seed(0)
    model, cpu = UltimusNet(), torch.device("cpu")
    model(torch.randn(64, 3, 32, 32))  # BatchNorm learns its statistics
    bent = utils.with_default_init(model)
    for block in bent.blocks:
        block.key.weight.data *= 30
        block.out.weight.data *= 30
    model.blocks = torch.nn.Identity()
    linear, other = (utils.linear_share(net, cpu, small[1], small[1]) for net in (model, bent))
    assert linear == pytest.approx((1, utils.test(model, cpu, small[1])[1]), abs=1e-3)
    assert other[0] < 0.99
