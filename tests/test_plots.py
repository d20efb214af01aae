"""What a user relies on in the measurements and the figures."""

import io

import matplotlib.pyplot as plt
import pytest
import torch

import utils
from model9 import UltimusNet

CPU = torch.device("cpu")
HISTORY = [
    dict(epoch=e, lr=0.01, train_loss=2 / e, train_accuracy=10 * e, test_loss=3 / e, test_accuracy=9 * e, seconds=1)
    for e in range(1, 5)
]


@pytest.fixture
def model():
    """A new network whose BatchNorm has seen images, in training mode."""
    torch.manual_seed(0)
    model = UltimusNet()
    with torch.no_grad():
        model(torch.randn(64, 3, 32, 32))
    return model


def test_every_figure_explains_itself_says_that_it_is_of_the_stand_in_and_is_saved_as_shown(model, small):
    utils.on_stand_in = True
    images, labels = small[1].images, small[1].labels
    predicted = (labels + 1) % 10
    figures = {
        "augmented_samples.png": utils.plot_samples(small[0]),
        "lr_finder.png": utils.find_lr(model, small[0], 0.015, 0.2, steps=10),
        "lr_schedule.png": utils.plot_schedule(utils.learning_rates(2, 10, 0.005), 10, 0.2),
        "test_train_loss_accuracy.png": utils.plot_history(HISTORY),
        "misclassified_imgs.png": utils.plot_misclassified(images, labels, predicted),
        "confusion_matrix.png": utils.plot_confusion(labels, predicted),
        "attention_maps.png": utils.plot_attention(model, images[:3], labels[:3]),
        "block_spectra.png": utils.plot_blocks({"ours": model}, utils.normalize(images[:16])),
    }
    for name, figure in figures.items():
        plots = [axes for axes in figure.axes if axes.axison and axes.get_label() != "<colorbar>"]
        assert figure.get_suptitle() or all(axes.get_title() for axes in plots), name
        assert all(axes.get_xlabel() and axes.get_ylabel() for axes in plots), name
        marks = [text for text in figure.findobj(plt.Text) if "stand-in" in text.get_text()]
        assert len(marks) == 1, name
        shown = io.BytesIO()
        figure.savefig(shown, bbox_inches="tight")  # as a notebook does
        assert shown.getvalue() == (utils.output_folder("images") / name).read_bytes(), name
    assert plt.get_fignums() == []  # nothing left that a notebook would show twice


def test_curves_show_the_history_and_the_policy_with_the_blocks_own_rate():
    figure = utils.plot_history(HISTORY)
    assert not any("stand-in" in text.get_text() for text in figure.findobj(plt.Text))
    for axes, quantity in zip(figure.axes, ("loss", "accuracy")):
        assert [line.get_label() for line in axes.lines] == ["train", "test"]
        for line in axes.lines:
            assert list(line.get_ydata()) == [row[f"{line.get_label()}_{quantity}"] for row in HISTORY]
    others, blocks = utils.plot_schedule(utils.learning_rates(2, 10, 0.005), 10, 0.2).axes[0].lines
    assert others.get_xdata()[10] == 1 and list(others.get_ydata()) == utils.learning_rates(2, 10, 0.005)
    assert blocks.get_ydata() == pytest.approx(0.2 * others.get_ydata())


def test_misclassified_images_are_wrong_ones_and_named(small):
    images, labels = small[1].images, small[1].labels
    predicted = labels.clone()
    predicted[[3, 50]] = 9
    first, second = utils.plot_misclassified(images, labels, predicted).axes
    assert [first.get_title(), second.get_title()] == [
        "actual: cat\npredicted: truck",
        "actual: airplane\npredicted: truck",
    ]
    assert (second.images[0].get_array() == images[50].permute(1, 2, 0).numpy()).all()


def test_the_confusion_matrix_counts_actual_against_predicted():
    counts = utils.plot_confusion(torch.tensor([0, 0, 3]), torch.tensor([0, 5, 5])).axes[0].images[0].get_array()
    assert counts[0, 0] == counts[0, 5] == counts[3, 5] == 1 and counts.sum() == 3


def test_the_attention_maps_are_those_of_the_images_on_a_scale_with_uniform_in_its_middle(model, small):
    images, labels = small[1].images[:2], small[1].labels[:2]
    shown = utils.plot_attention(model, images, labels).axes[5 + 2].images[0]  # second image, second block
    x = model.eval().blocks[0](model.features(utils.normalize(images)))
    torch.testing.assert_close(torch.tensor(shown.get_array()), model.blocks[1].attend(x)[0][1].detach())
    assert sum(shown.get_clim()) / 2 == pytest.approx(1 / 8 / 8**0.5)


@pytest.mark.parametrize("blocks", [1, 0])
def test_the_figures_are_drawn_for_a_single_image_other_numbers_of_blocks_and_no_augmentation(model, small, blocks):
    model.blocks = model.blocks[:blocks]
    images = small[1].images[:16]
    assert len(utils.plot_attention(model, images[:1], small[1].labels[:1]).axes) == 1 + 2 * blocks
    utils.plot_blocks({"default": utils.with_default_init(model), "ours": model}, utils.normalize(images))
    utils.find_lr(model, small[0], 0.015, 0.2, steps=10)
    utils.plot_samples(utils.Batches(images, small[1].labels[:16], transform=None))


def test_the_spectrum_is_that_of_the_softmaxs_input_and_the_model_is_left_alone(model):
    model.fc.reset_parameters()  # else its logits have the mean zero
    images = torch.randn(8, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    values, _ = utils.spectrum(model, images), utils.plot_blocks({"ours": model}, images)
    assert model.training and all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())

    def centred(x):  # (48,) to (10,): the softmax does not see the mean of the logits
        logits = model.fc(model.blocks(x))
        return logits - logits.mean()

    jacobians = [torch.autograd.functional.jacobian(centred, x) for x in model.eval().features(images).detach()]
    expected = torch.stack([torch.linalg.svdvals(jacobian)[:9] for jacobian in jacobians]).mean(0)
    torch.testing.assert_close(torch.tensor(values), expected, atol=1e-4, rtol=1e-4)


def test_the_linear_share_is_all_of_a_head_that_is_linear_and_less_of_one_that_is_not(model, small):
    bent = utils.with_default_init(model)
    for block in bent.blocks:
        block.key.weight.data *= 30
        block.out.weight.data *= 30
    bent.fc.bias.data += 100  # which explains no difference between images
    model.blocks = torch.nn.Identity()
    r2, accuracy = utils.linear_share(model, CPU, small[1], small[1])
    shuffled = utils.Batches(small[1].images, small[1].labels, batch_size=16, shuffle=True)
    assert utils.linear_share(model, CPU, shuffled, shuffled) == pytest.approx((r2, accuracy), abs=1e-3)
    assert r2 == pytest.approx(1, abs=1e-3) and accuracy == pytest.approx(utils.test(model, CPU, small[1])[1])
    assert utils.linear_share(bent, CPU, small[1], small[1])[0] < 0.99


def test_a_mirrored_prediction_is_the_mean_over_each_image_and_its_mirror_image(model, small):
    scores, labels = utils.predict_mirrored(model, CPU, small[1])
    images = utils.normalize(small[1].images)
    expected = (model(images).softmax(1) + model(images.flip(3)).softmax(1)) / 2  # still in eval mode
    torch.testing.assert_close(scores, expected.detach())
    assert torch.equal(labels, small[1].labels)
