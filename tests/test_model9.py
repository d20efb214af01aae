"""What a user relies on in model9.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import utils
from model9 import Ultimus, UltimusNet


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return UltimusNet().eval()


def naive_ultimus(block, x):
    """The assignment's formula for one image, number by number."""
    q, k, v = ([sum(w * a for w, a in zip(row, x)) + b for row, b in zip(layer.weight.tolist(), layer.bias.tolist())]
               for layer in (block.query, block.key, block.value))  # fmt: skip
    am = [[math.exp(qi * kj) / sum(math.exp(qi * other) for other in k) / math.sqrt(8) for kj in k] for qi in q]
    z = [sum(v[i] * am[i][j] for i in range(8)) for j in range(8)]
    return am, [
        sum(w * a for w, a in zip(row, z)) + b for row, b in zip(block.out.weight.tolist(), block.out.bias.tolist())
    ]


@pytest.mark.parametrize("scale", [0.1, 1, 5])
def test_the_block_computes_the_assignments_formula_for_each_image(scale):
    torch.manual_seed(1)
    block, x = Ultimus(), scale * torch.randn(4, 48)
    for image, attention, out in zip(x, block.attend(x)[0], block(x)):
        naive_attention, naive_out = naive_ultimus(block, image.tolist())
        torch.testing.assert_close(attention, torch.tensor(naive_attention), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out, torch.tensor(naive_out), atol=1e-4, rtol=1e-4)


def test_shapes_and_parameter_counts_are_the_assignments(net):
    assert sum(p.numel() for p in net.parameters()) == 25_978
    assert [tuple(layer.weight.shape) for layer in (net.blocks[0].key, net.blocks[0].out)] == [(8, 48), (48, 8)]
    convolutions = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert [tuple(c.weight.shape) for c in convolutions] == [(16, 3, 3, 3), (32, 16, 3, 3), (48, 32, 3, 3)]
    assert all(c.bias is None for c in convolutions)
    assert len(net.blocks) == 4 and all(isinstance(block, Ultimus) for block in net.blocks)
    assert net(torch.randn(5, 3, 32, 32)).shape == (5, 10)
    assert net.blocks[0](torch.randn(5, 48)).shape == (5, 48)
    assert [part.shape for part in net.blocks[0].attend(torch.randn(5, 48))] == [(5, 8, 8), (5, 8)]


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 9), st.randoms(use_true_random=False), st.floats(0.1, 10))
def test_an_images_logits_never_depend_on_the_batch(count, random, scale):
    torch.manual_seed(0)
    net = UltimusNet().eval()
    images = scale * torch.randn(count, 3, 32, 32)
    order = random.sample(range(count), count)
    with torch.no_grad():
        together = net(images)
        alone = torch.cat([net(image[None]) for image in images])
        shuffled = net(images[order])
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(0, 1000))
def test_rows_of_the_attention_sum_to_one_over_sqrt_8_without_overflow(scale, seed):
    torch.manual_seed(seed)
    sums = Ultimus().attend(scale * torch.randn(3, 48))[0].sum(dim=2)
    torch.testing.assert_close(sums, torch.full((3, 8), 1 / math.sqrt(8)))


def test_new_blocks_are_the_projection_on_their_directions_to_first_order():
    torch.manual_seed(0)
    net = UltimusNet()
    basis = net.blocks[0].key.weight
    jacobian = torch.func.jacrev(net.blocks)(torch.zeros(48))
    torch.testing.assert_close(jacobian, basis.T @ basis, atol=1e-4, rtol=0)


@pytest.mark.parametrize("seed", range(6))
def test_new_blocks_pass_on_the_differences_between_images_and_pytorchs_initialisation_erases_them(seed):
    torch.manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.randn(256, 3, 6, 6), size=32, mode="bicubic")
    images, net = smooth + 0.3 * torch.randn_like(smooth), UltimusNet().train()
    gradients, default = [], utils.with_default_init(net)
    for model in (net, default):
        torch.nn.functional.cross_entropy(model(images), torch.arange(256) % 10).backward()
        gradients.append(model.stem[0].conv.weight.grad.norm())
    assert gradients[1] < 1e-4 * gradients[0]
    with torch.no_grad():
        before, *_, after = utils.differences(net, images)
        assert (after - before).norm() < 0.15 * before.norm()
        assert 0.8 < utils.remaining_variance(net, images)[4] < 1.2
        shares = utils.remaining_variance(default, images)
    assert shares == sorted(shares, reverse=True) and shares[4] < 1e-8


def test_all_blocks_are_initialised_with_the_same_eight_directions_of_sum_zero_and_the_classes_read_all_of_them():
    torch.manual_seed(0)
    net = UltimusNet()
    basis = net.blocks[0].key.weight
    assert all(torch.equal(block.key.weight, basis) for block in net.blocks)
    torch.testing.assert_close(basis @ basis.T, torch.eye(8), atol=1e-5, rtol=0)
    torch.testing.assert_close(basis.sum(1), torch.zeros(8), atol=1e-5, rtol=0)
    assert torch.linalg.svdvals(net.fc.weight - net.fc.weight.mean(0))[7] > 0.1


def test_no_two_rows_of_an_attention_map_stay_equal():
    torch.manual_seed(0)
    net = UltimusNet().train()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.002)
    images, labels = torch.randn(64, 3, 32, 32), torch.arange(64) % 10
    for _ in range(10):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(net(images), labels).backward()
        optimizer.step()
    x = net.features(images)
    for block in net.blocks:
        attention, _ = block.attend(x)
        apart = (attention[:, :, None] - attention[:, None]).abs().amax((0, 3))  # (8, 8), row against row
        assert (apart + torch.eye(8)).min() > 1e-4
        x = block(x)


@pytest.mark.parametrize("shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 28, 28), (2, 32, 32, 3), (2, 3072)])
def test_a_wrong_shape_or_type_is_refused_with_what_was_given_and_what_is_wanted(net, shape):
    with pytest.raises(ValueError, match=r"float images of shape \(batch, 3, 32, 32\)") as error:
        net(torch.zeros(shape))
    assert str(shape) in str(error.value)
    with pytest.raises(ValueError, match="uint8.*wants normalised float"):
        net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_a_batch_of_one_image_trains():
    net = UltimusNet().train()
    net(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_a_pixel_of_the_last_map_sees_windows_of_48_x_48_pixels():
    torch.manual_seed(0)
    net = UltimusNet()
    for part in net.stem:
        part.conv.weight.data.abs_()
        pool = part.pool
        part.pool = torch.nn.AvgPool2d(pool.kernel_size, pool.stride, pool.padding)  # every pixel of the window counts
        part.norm = part.relu = torch.nn.Identity()
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    net.stem(image)[0, 0, 12, 12].backward()
    seen = image.grad[0].abs().sum(0) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == 48
