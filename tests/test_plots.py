"""What a user relies on in the figures."""

from base64 import b64encode

import matplotlib.pyplot as plt
import pytest
import torch
from IPython.core.interactiveshell import InteractiveShell
from IPython.core.pylabtools import select_figure_formats
from IPython.display import display
from IPython.utils.capture import capture_output

import utils

HISTORY = [dict(epoch=1, train_loss=2, test_loss=3, train_accuracy=4, test_accuracy=5)]
LABELS = torch.arange(96) % 10
PREDICTED = LABELS.clone()
PREDICTED[3] = PREDICTED[50] = 9  # a cat and an airplane as trucks
TITLES = {
    "augmented_samples": "Training images and seven random crops",
    "lr_finder": "LR range test and max_lr = 0.015",
    "test_train_loss_accuracy": "Training and test loss. Training and test accuracy",
    "misclassified_imgs": "Misclassified test images",
    "confusion_matrix": "Confusion matrix of the test images",
    "attention_maps": "Attention maps of single images",
}


@pytest.fixture
def figures(net, small, monkeypatch):
    """Each figure, of the stand-in."""
    monkeypatch.setattr(utils.CIFAR10, "replaced", True)
    images = small[1].images
    return [
        utils.plot_samples(small[0]),
        utils.find_lr(net, small[0], 0.015, 0.2, steps=6),
        utils.plot_history(HISTORY),
        utils.plot_misclassified(images, LABELS, PREDICTED),
        utils.plot_confusion(LABELS, PREDICTED),
        utils.plot_attention(net, images[:1], LABELS),
    ]


def test_a_notebook_shows_the_saved_figures_with_their_titles_as_text(figures):
    select_figure_formats(InteractiveShell.instance(), {"png"})  # as %matplotlib inline
    with capture_output() as shown:
        display(*figures)
    assert not plt.get_fignums()  # or it shows them once more
    for output, (name, title) in zip(shown.outputs, TITLES.items(), strict=True):
        file = (utils.output_folder("images") / f"{name}.png").read_bytes()
        assert output.data["image/png"] in (file, b64encode(file).decode())
        assert output.metadata["image/png"]["alt"] == title


def test_the_axes_are_named_with_their_units(figures):
    axes = [axes for figure in figures for axes in figure.axes]
    assert {(each.get_xlabel(), each.get_ylabel()) for each in axes} > {
        ("learning rate", "training loss (smoothed)"),
        ("epoch", "loss"),
        ("epoch", "accuracy (%)"),
        ("predicted", "actual"),
        ("j (key)", "i (query)"),
    }


def test_each_figure_of_the_stand_in_says_so_once(figures):
    for figure in figures:
        texts = [text.get_text() for text in figure.findobj(plt.Text)]
        assert str(texts).count("stand-in") == 1


def test_a_row_of_samples_is_an_image_under_its_class_and_seven_draws(small):
    small[0].transform = lambda images: 255 - images
    row = utils.plot_samples(small[0]).axes[8:16]
    original, *draws = [axes.images[0].get_array().tolist() for axes in row]
    image = small[0].images[1].permute(1, 2, 0)
    assert original == image.tolist()
    assert draws == 7 * [(255 - image).tolist()]
    assert row[0].get_title() == "automobile: original"


def test_the_curves_are_those_of_the_history():
    for axes, values in zip(utils.plot_history(HISTORY).axes, ([2, 3], [4, 5])):
        assert [text.get_text() for text in axes.get_legend().texts] == ["train", "test"]
        assert [line.get_xydata().tolist() for line in axes.lines] == [[[1, y]] for y in values]


def test_the_misclassified_images_are_shown_under_both_classes(small):
    images = small[1].images
    cat, airplane = utils.plot_misclassified(images, LABELS, PREDICTED).axes
    assert cat.get_title() == "actual: cat\npredicted: truck"
    shown = airplane.images[0].get_array()
    assert shown.tolist() == images[50].permute(1, 2, 0).tolist()
    assert len(utils.plot_misclassified(images, LABELS, 9 - LABELS).axes) == 20


def test_the_confusion_matrix_has_the_actual_classes_in_rows():
    (axes,) = utils.plot_confusion(LABELS, PREDICTED).axes
    counts = axes.images[0].get_array()
    assert counts[3, 9] == 1
    assert counts.sum() == 96
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == [*utils.CLASSES]
    for text in axes.texts:
        count = counts[text.get_position()[::-1]]
        assert text.get_text() == str(count)
        assert text.get_color() == ("white" if count > 5 else "black")


def test_an_attention_map_is_that_of_its_image_with_the_queries_in_rows(net, small):
    images = small[1].images[:2]
    first, _, axes, *_ = utils.plot_attention(net, images, LABELS).axes[5:]  # of the second image
    assert (first.get_title(), axes.get_title()) == ("automobile", "block 2")
    x = net.eval().blocks[0](net.features(utils.normalize(images)))
    maps, _ = net.blocks[1].attend(x)
    (shown,) = axes.images
    torch.testing.assert_close(torch.tensor(shown.get_array()), maps[1].detach())
    assert shown.get_clim() == pytest.approx((0, 2 * 8**-1.5))  # uniform in its middle
    del net.blocks[:]
    utils.plot_attention(net, images, LABELS)
