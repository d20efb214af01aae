"""What a user relies on in model9.py."""

import math

import pytest
import torch
import torch.nn.functional as F

import utils
from model9 import Ultimus, UltimusNet


@pytest.fixture
def net():
    torch.manual_seed(0)
    return UltimusNet()


def test_the_block_computes_the_assignments_formula_for_each_image():
    torch.manual_seed(1)
    block, x = Ultimus(), torch.tensor([[0.1], [1], [5]]) * torch.randn(3, 48)
    for image, attention, out in zip(x, block.attend(x)[0], block(x)):
        q, k, v = (layer(image).tolist() for layer in (block.query, block.key, block.value))
        am = [[math.exp(qi * kj) / sum(math.exp(qi * other) for other in k) / math.sqrt(8) for kj in k] for qi in q]
        z = [sum(v[i] * am[i][j] for i in range(8)) for j in range(8)]
        torch.testing.assert_close(attention, torch.tensor(am), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out, block.out(torch.tensor(z)), atol=1e-4, rtol=1e-4)


def test_shapes_and_parameter_counts_are_the_assignments(net):
    assert sum(p.numel() for p in net.parameters()) == 25_978
    convolutions = [tuple(m.weight.shape) for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert convolutions == [(16, 3, 3, 3), (32, 16, 3, 3), (48, 32, 3, 3)]
    assert [type(block) for block in net.blocks] == 4 * [Ultimus]
    assert net(torch.randn(5, 3, 32, 32)).shape == (5, 10)
    assert net.blocks[0](torch.randn(5, 48)).shape == (5, 48)


@pytest.mark.parametrize("count, scale", [(1, 1), (2, 10), (9, 0.1)])
def test_an_images_logits_never_depend_on_the_batch(net, count, scale):
    images, order = scale * torch.randn(count, 3, 32, 32), torch.randperm(count)
    net.eval()
    with torch.no_grad():
        alone = torch.cat([net(image[None]) for image in images])
        torch.testing.assert_close(net(images[order]), alone[order], atol=1e-5, rtol=1e-5)


def projected(net, x):
    """Inputs of the blocks, projected on the directions that the first block's keys read."""
    basis = net.blocks[0].key.weight
    return x @ basis.T @ basis


def test_a_new_block_is_the_projection_on_its_directions_to_first_order(net):
    x, errors = torch.randn(16, 48), []
    for scale in (0.1, 0.01):
        expected = projected(net, scale * x)
        errors.append(((net.blocks[0](scale * x) - expected).norm() / expected.norm()).item())
    assert errors[0] < 0.1 and errors[1] < 0.15 * errors[0]  # the rest is of second order
    jacobian = torch.func.jacrev(net.blocks)(torch.zeros(48))
    torch.testing.assert_close(jacobian, projected(net, torch.eye(48)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_a_new_network_passes_on_the_images_and_the_gradient_and_pytorchs_default_initialisation_neither(seed):
    torch.manual_seed(seed)
    smooth = F.interpolate(torch.randn(64, 3, 6, 6), size=32, mode="bicubic")  # large shapes, as photographs have
    images = smooth + 0.3 * torch.randn_like(smooth)
    ours = UltimusNet()
    default = utils.with_default_init(ours)
    x = ours.features(images)
    assert x.min() >= 0 and x.mean() > 0.3  # all channels share much
    before, after = projected(ours, x - x.mean(0)), ours.blocks(x)
    assert (after - after.mean(0) - before).norm() < 0.15 * before.norm()
    shares = utils.remaining_variance(utils.differences(default, images))
    assert min(utils.remaining_variance(utils.differences(ours, images))) > 0.9
    assert shares == sorted(shares, reverse=True) and shares[4] < 1e-8
    for net in (ours, default):
        F.cross_entropy(net(images), torch.arange(64) % 10).backward()
    gradient, default_gradient = (net.stem[0].conv.weight.grad.norm() for net in (ours, default))
    assert default_gradient < 1e-4 * gradient


def test_all_new_blocks_have_the_same_eight_directions_of_sum_zero_and_the_classes_read_all_of_them(net):
    basis = net.blocks[0].key.weight
    assert all(torch.equal(block.key.weight, basis) for block in net.blocks)
    torch.testing.assert_close(basis @ basis.T, torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis.sum(1), torch.zeros(8), atol=1e-5, rtol=0)
    assert torch.linalg.svdvals(net.fc.weight @ basis.T)[7] > 0.1


def test_no_two_rows_of_an_attention_map_stay_equal(net):
    optimizer, images = torch.optim.Adam(net.parameters(), lr=0.002), torch.randn(64, 3, 32, 32)
    for _ in range(10):
        optimizer.zero_grad()
        F.cross_entropy(net(images), torch.arange(64) % 10).backward()
        optimizer.step()
    for block, x in zip(net.blocks, utils.block_outputs(net, images)):
        attention, _ = block.attend(x)
        apart = (attention[:, :, None] - attention[:, None]).abs().amax((0, 3))  # (8, 8), row against row
        assert (apart + torch.eye(8)).min() > 1e-4


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 28, 28), (2, 32, 32, 3), (2, 3072)])
def test_images_of_a_wrong_shape_or_not_normalised_are_refused_with_what_is_wanted(net, shape):
    for images in (torch.zeros(shape), torch.zeros(2, 3, 32, 32, dtype=torch.uint8)):
        with pytest.raises(ValueError, match=r"wants normalised float images of shape \(batch, 3, 32, 32\)") as error:
            net(images)
        assert f"{images.dtype} images of shape {tuple(images.shape)}" in str(error.value)


def test_a_pixel_of_the_last_map_sees_windows_of_48_x_48_pixels(net):
    for part in net.stem:
        part.conv.weight.data.abs_()
        pool = part.pool
        part.pool = torch.nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding)  # every pixel of the window counts
        part.norm = part.relu = torch.nn.Identity()
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    net.stem(image)[0, 0, 12, 12].backward()
    seen = image.grad[0].abs().sum(0) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == 48
