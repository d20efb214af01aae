"""What a user relies on in model9.py."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model9 import Ultimus, UltimusNet


def new_block(head=8, dim=48):
    """A block with a random basis, and the basis."""
    basis = torch.nn.init.orthogonal_(torch.empty(head, dim))
    return Ultimus(basis), basis


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
    block, x = new_block()[0], scale * torch.randn(4, 48)
    for parameter in block.parameters():  # no symmetry of the initialisation left
        parameter.data += 0.3 * torch.randn_like(parameter)
    for image, attention, out in zip(x, block.attention(x), block(x)):
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
    assert net.blocks[0].attention(torch.randn(5, 48)).shape == (5, 8, 8)
    small, _ = new_block(head=4, dim=12)
    assert small(torch.randn(5, 12)).shape == (5, 12) and small.attention(torch.randn(5, 12)).shape == (5, 4, 4)


@settings(max_examples=20, deadline=None)
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


@settings(max_examples=50, deadline=None)
@given(st.floats(-1e6, 1e6), st.integers(0, 1000))
def test_rows_of_the_attention_sum_to_one_over_sqrt_8_without_overflow(scale, seed):
    torch.manual_seed(seed)
    sums = new_block()[0].attention(scale * torch.randn(3, 48)).sum(dim=2)
    torch.testing.assert_close(sums, torch.full((3, 8), 1 / math.sqrt(8)))


def test_a_new_block_is_the_projection_on_its_basis_to_first_order():
    torch.manual_seed(0)
    block, basis = new_block()
    x, errors = torch.randn(16, 48), []
    for scale in (0.1, 0.01):
        projected = scale * x @ basis.T @ basis
        errors.append(((block(scale * x) - projected).norm() / projected.norm()).item())
    assert errors[0] < 0.1 and errors[1] < 0.15 * errors[0]  # the rest is of second order
    jacobian = torch.func.jacrev(block)(torch.zeros(48))
    torch.testing.assert_close(jacobian, basis.T @ basis, atol=1e-5, rtol=0)


def test_a_new_networks_four_blocks_pass_on_the_same_eight_directions_and_the_classes_read_all_of_them():
    torch.manual_seed(0)
    net = UltimusNet()
    basis = net.blocks[0].key.weight
    torch.testing.assert_close(basis @ basis.T, torch.eye(8), atol=1e-5, rtol=0)
    jacobian = torch.func.jacrev(net.blocks)(torch.zeros(48))
    torch.testing.assert_close(jacobian, basis.T @ basis, atol=1e-4, rtol=0)
    assert torch.linalg.svdvals(net.fc.weight - net.fc.weight.mean(0))[7] > 0.1


def test_a_wrong_shape_is_refused_with_what_was_given_and_what_is_wanted(net):
    for shape in [(3, 32, 32), (2, 1, 32, 32), (2, 3, 28, 28), (2, 32, 32, 3), (2, 3072)]:
        with pytest.raises(ValueError) as error:
            net(torch.zeros(shape))
        assert str(shape) in str(error.value) and "(batch, 3, 32, 32)" in str(error.value)


def test_a_wrong_dtype_or_device_is_refused_with_the_cure(net):
    with pytest.raises(TypeError, match="uint8.*float32.*normalise"):
        net(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    with pytest.raises(TypeError, match="float64"):
        net(torch.zeros(2, 3, 32, 32, dtype=torch.float64))
    with pytest.raises(ValueError, match="images are on meta, the network on cpu: move"):
        net(torch.zeros(2, 3, 32, 32, device="meta"))


def test_a_batch_of_one_image_trains():
    net = UltimusNet().train()
    net(torch.randn(1, 3, 32, 32)).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_the_pooling_lets_a_pixel_of_the_last_map_see_37_x_37_pixels():
    torch.manual_seed(0)
    net = UltimusNet()
    stem = torch.nn.Sequential(*[torch.nn.Sequential(*part[:2]) for part in net.stem])  # without BatchNorm and ReLU
    for part in stem:
        part[0].weight.data.abs_()
        part[1] = torch.nn.AvgPool2d(part[1].kernel_size, 2, part[1].padding)  # every pixel of the window counts
    image = torch.rand(1, 3, 96, 96, requires_grad=True)
    stem(image)[0, 0, 6, 6].backward()
    seen = image.grad[0].abs().sum(0) > 0
    assert seen.any(0).sum() == seen.any(1).sum() == 37
