"""What a user relies on in the measurements and the figures."""

import copy

import matplotlib.pyplot as plt
import pytest
import torch
from torch.autograd.functional import jacobian

import utils

HISTORY = [
    dict(epoch=e, train_loss=2 / e, test_loss=3 / e, train_accuracy=10 * e, test_accuracy=9 * e)
    for e in (1, 2)
]


def test_every_figure_explains_itself_says_that_it_is_of_the_stand_in_and_is_saved(net, small):
    utils.on_stand_in = True
    images, labels = small[1].images, small[1].labels
    figures = {
        "augmented_samples": utils.plot_samples(small[0]),
        "lr_finder": utils.find_lr(net, small[0], 0.015, 0.2, steps=10),
        "lr_schedule": utils.plot_schedule(2, 10, 0.005, 0.2),
        "test_train_loss_accuracy": utils.plot_history(HISTORY),
        "misclassified_imgs": utils.plot_misclassified(net, "cpu", small[1]),
        "confusion_matrix": utils.plot_confusion(labels, labels),
        "attention_maps": utils.plot_attention(net, images[:2], labels[:2]),
        "block_spectra": utils.plot_blocks({"ours": net}, utils.normalize(images[:16])),
    }
    for name, figure in figures.items():
        plots = [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
        assert figure.get_suptitle() or all(axes.get_title() for axes in plots), name
        assert all(axes.get_xlabel() and axes.get_ylabel() for axes in plots), name
        assert (
            len([text for text in figure.findobj(plt.Text) if "stand-in" in text.get_text()]) == 1
        ), name
        assert (utils.output_folder("images") / f"{name}.png").exists()
    assert plt.get_fignums() == []  # nothing left that a notebook would show twice


def test_curves_show_the_history_and_the_policy_with_the_blocks_own_rate_and_the_confusion_matrix_counts():
    figure = utils.plot_history(HISTORY)
    assert not any("stand-in" in text.get_text() for text in figure.findobj(plt.Text))
    for axes, quantity in zip(figure.axes, ("loss", "accuracy")):
        assert [line.get_label() for line in axes.lines] == ["train", "test"]
        for line in axes.lines:
            assert list(line.get_ydata()) == [
                row[f"{line.get_label()}_{quantity}"] for row in HISTORY
            ]
    others, blocks = utils.plot_schedule(2, 10, 0.005, 0.2).axes[0].lines
    assert others.get_xdata()[10] == 1 and max(others.get_ydata()) == pytest.approx(0.005)
    assert blocks.get_ydata() == pytest.approx(0.2 * others.get_ydata())
    labels = torch.arange(96) % 10
    counts = (
        utils.plot_confusion(labels, labels.clone().index_fill(0, torch.tensor([3, 50]), 9))
        .axes[0]
        .images[0]
    )
    assert (
        counts.get_array()[[3, 0, 0, 9], [9, 9, 0, 9]].tolist() == [1, 1, 9, 9]
        and counts.get_array().sum() == 96
    )


def test_misclassified_images_are_wrong_ones_and_named_also_those_of_shuffled_batches(net, small):
    small[0].transform = lambda images: images
    guesses = utils.predict(net, "cpu", small[1])[0].argmax(1)
    classes = {}
    for image, label, guess in zip(small[1].images, small[1].labels, guesses):
        title = f"actual: {utils.CLASSES[label]}\npredicted: {utils.CLASSES[guess]}"
        classes[image.permute(1, 2, 0).numpy().tobytes()] = title, label != guess
    shown = utils.plot_misclassified(net, "cpu", small[0]).axes
    assert len(shown) == 20
    assert all(
        classes[axes.images[0].get_array().tobytes()] == (axes.get_title(), True) for axes in shown
    )


def test_the_attention_maps_are_those_of_the_images_on_a_scale_with_uniform_in_its_middle(
    net, small
):
    images, labels = small[1].images[:2], small[1].labels[:2]
    shown = (
        utils.plot_attention(net, images, labels).axes[5 + 2].images[0]
    )  # second image, second block
    x = net.eval().blocks[0](net.features(utils.normalize(images)))
    torch.testing.assert_close(
        torch.tensor(shown.get_array()), net.blocks[1].attend(x)[0][1].detach()
    )
    assert sum(shown.get_clim()) / 2 == pytest.approx(1 / 8 / 8**0.5)


@pytest.mark.parametrize("blocks, mode", [(4, True), (1, False), (0, True)])
def test_what_measures_or_predicts_works_for_other_numbers_of_blocks_and_leaves_the_mode(
    net, small, blocks, mode
):
    net.train(mode).blocks = net.blocks[:blocks]
    images, labels = small[1].images[:16], small[1].labels[:16]
    assert len(utils.plot_attention(net, images[:1], labels[:1]).axes) == 1 + blocks + (blocks > 0)
    utils.plot_blocks(
        {"default": utils.with_default_init(net), "ours": net}, utils.normalize(images)
    )
    utils.find_lr(net, small[0], 0.015, 0.2, steps=10)
    utils.predict(net, "cpu", utils.Batches(images, labels))
    assert all(module.training == mode for module in net.modules())


def test_the_remaining_variance_is_that_over_all_entries_between_the_images(net):
    images = torch.randn(32, 3, 32, 32)
    outputs = [x.double() for x in utils.block_outputs(copy.deepcopy(net).train(), images)]
    sums = [sum((row - x.mean(0)).square().sum() for row in x) for x in outputs]
    assert utils.remaining_variance(net, images) == pytest.approx(
        [float(total / sums[0]) for total in sums], rel=1e-3
    )


def test_the_spectrum_is_that_of_the_softmaxs_input_and_the_model_is_left_alone(net):
    net.fc.reset_parameters()  # else its logits have the mean zero
    images = torch.randn(8, 3, 32, 32)
    before, values = copy.deepcopy(net.state_dict()), utils.spectrum(net.eval(), images)
    utils.plot_blocks({"ours": net.train()}, images)
    assert net.training and all(
        torch.equal(before[name], tensor) for name, tensor in net.state_dict().items()
    )
    centre = torch.eye(10) - 0.1  # the softmax does not see the mean of the logits
    jacobians = [
        centre @ jacobian(lambda x: net.fc(net.blocks(x)), x)
        for x in net.eval().features(images).detach()
    ]
    expected = torch.stack([torch.linalg.svdvals(matrix)[:9] for matrix in jacobians]).mean(0)
    torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=1e-4)
    assert utils.directions(net, images) == (expected > 0.01 * expected[0]).sum()
