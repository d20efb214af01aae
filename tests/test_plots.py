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
        "block_spectra.png": utils.plot_passage({"ours": model}, sample),
    }


@pytest.fixture(autouse=True)
def output(tmp_path, monkeypatch):
    monkeypatch.setenv("ULTIMUS_OUTPUT", str(tmp_path))
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


def test_every_figure_made_from_the_stand_in_says_so(small):
    utils.MARKS["data"] = utils.STAND_IN
    for name, figure in figures(small).items():
        assert any("synthetic stand-in" in text for text in texts(figure)), name


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


def stem_gradient(net, images):
    torch.nn.functional.cross_entropy(net(images), torch.arange(len(images)) % 10).backward()
    return net.stem[0].conv.weight.grad.norm()


def test_the_start_of_pytorch_erases_the_images_and_ours_passes_them_on():
    torch.manual_seed(0)
    model, images = UltimusNet(), torch.randn(64, 3, 32, 32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    default = utils.with_default_init(model)
    rows, erased = utils.block_spectra(model, images), utils.block_spectra(default, images)
    assert len(rows) == 4 and len(rows[0]["map"]) == 8
    assert rows[3]["spread"] > 0.5 * rows[0]["spread"]
    assert erased[3]["spread"] < 1e-3 * erased[0]["spread"]
    assert min(row["map"][7] for row in rows) > 10 * max(row["map"][1] for row in erased)
    errors = utils.passage_errors(utils.passage(model, images))
    assert len(errors) == 4 and errors[0] < errors[3] < 0.15
    for seed in range(6):
        torch.manual_seed(seed)
        left = [part.norm().item() for part in utils.passage(utils.with_default_init(model), images)]
        assert left == sorted(left, reverse=True) and left[4] < 1e-5 * left[0]
        gradients = [stem_gradient(net, images) for net in (UltimusNet(), utils.with_default_init(model))]
        assert gradients[1] < 1e-4 * gradients[0]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_block_spectra_are_those_of_the_matrices():
    torch.manual_seed(0)
    model, images = UltimusNet().train(), torch.randn(8, 3, 32, 32)
    x = utils.block_inputs(model, images)[2]
    row = utils.block_spectra(model, images)[2]
    jacobians = [torch.autograd.functional.jacobian(model.blocks[2], one) for one in x]
    expected = torch.stack([torch.linalg.svdvals(j)[:8] for j in jacobians]).mean(0)
    torch.testing.assert_close(torch.tensor(row["map"]), expected, atol=1e-4, rtol=1e-4)
    attention, z = model.blocks[2].attend(x)
    assert row["spread"] == pytest.approx(z.std(0).mean().item())
    assert row["departure"] == pytest.approx(attention.var(0).mean().sqrt().item())
    assert row["mean departure"] == pytest.approx((attention.mean(0) - 1 / 8**1.5).square().mean().sqrt().item())


def test_a_step_moves_one_kind_of_layer_at_a_time_and_leaves_the_model_alone():
    torch.manual_seed(0)
    model, images, labels = UltimusNet(), torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    effects = utils.step_effect(model, images, labels, 0.002)
    assert list(effects) == ["query", "key", "value", "out"] and min(effects.values()) > 0
    assert all(value == 0 for value in utils.step_effect(model, images, labels, 0.0).values())
    assert utils.step_effect(model, images, labels, 0.004)["key"] > 1.5 * effects["key"]
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


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
    assert linear["r2"] == pytest.approx(1, abs=1e-3) and linear["same class"] == 100
    assert linear["accuracy"] == pytest.approx(utils.test(model, cpu, small[1])[1])
    assert other["r2"] < 0.99
