"""What a user relies on in model9.py."""

import copy
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import utils
from model9 import Ultimus, UltimusNet


def test_the_block_computes_the_assignments_formula_for_each_image():
    torch.manual_seed(1)
    block, x = Ultimus(), torch.tensor([[0.1], [1], [5]]) * torch.randn(3, 48)
    for image, attention, out in zip(x, block.attend(x)[0], block(x)):
        q, k, v = (layer(image).tolist() for layer in (block.query, block.key, block.value))
        am = [
            [
                math.exp(qi * kj) / sum(math.exp(qi * other) for other in k) / math.sqrt(8)
                for kj in k
            ]
            for qi in q
        ]
        z = [sum(v[i] * am[i][j] for i in range(8)) for j in range(8)]
        torch.testing.assert_close(attention, torch.tensor(am), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(out, block.out(torch.tensor(z)), atol=1e-4, rtol=1e-4)


def test_shapes_and_parameter_counts_are_the_assignments(net):
    assert sum(p.numel() for p in net.parameters()) == 25_978
    assert [tuple(part.conv.weight.shape) for part in net.stem] == [
        (16, 3, 3, 3),
        (32, 16, 3, 3),
        (48, 32, 3, 3),
    ]
    assert [type(block) for block in net.blocks] == 4 * [Ultimus]
    assert net.blocks[0](torch.randn(5, 48)).shape == (5, 48) and net(
        torch.randn(5, 3, 32, 32)
    ).shape == (5, 10)


@pytest.mark.parametrize("count, scale", [(2, 10), (9, 0.1)])
def test_an_images_logits_never_depend_on_the_batch(net, count, scale):
    images, order = scale * torch.randn(count, 3, 32, 32), torch.randperm(count)
    net.eval()
    alone = torch.cat([net(image[None]) for image in images])
    torch.testing.assert_close(net(images[order]), alone[order], atol=1e-5, rtol=1e-5)


def test_an_image_and_its_mirror_image_have_the_same_logits_in_a_new_and_in_the_trained_network(
    net,
):
    images, trained = torch.randn(4, 3, 32, 32).double(), Path(__file__).parents[1] / "ultimus.pt"
    for weights in (net.state_dict(), torch.load(trained, map_location="cpu")):
        net.double().load_state_dict(weights)
        for mode in (True, False):
            net.train(mode)
            torch.testing.assert_close(net(images), net(images.flip(3)), atol=1e-9, rtol=0)
            assert (net(images) - net(images.flip(2))).abs().max() > 1e-3


def test_new_blocks_are_the_projection_on_the_same_eight_directions_of_sum_zero_and_the_classes_read_all(
    net,
):
    basis = net.blocks[0].key.weight
    assert all(torch.equal(block.key.weight, basis) for block in net.blocks)
    torch.testing.assert_close(
        (basis @ basis.T, basis.sum(1)), (torch.eye(8), torch.zeros(8)), atol=1e-5, rtol=0
    )
    assert torch.linalg.svdvals(net.fc.weight @ basis.T)[7] > 0.1
    x = torch.randn(16, 48)
    assert (
        torch.pdist(net.blocks[0].attend(x)[0][0]).min() > 1e-3
    )  # rows of a map that start equal would stay equal
    errors = [
        (net.blocks[0](scale * x) / scale - x @ basis.T @ basis).norm() for scale in (0.1, 0.01)
    ]
    assert (
        errors[0] < 0.1 * (x @ basis.T).norm() and errors[1] < 0.15 * errors[0]
    )  # the rest is of second order
    torch.testing.assert_close(
        torch.func.jacrev(net.blocks)(torch.zeros(48)), basis.T @ basis, atol=1e-4, rtol=0
    )


@pytest.mark.parametrize("seed", range(4))
def test_a_new_network_passes_eight_directions_and_the_gradient_on_and_pytorchs_default_initialisation_neither(
    seed,
):
    torch.manual_seed(seed)
    smooth = F.interpolate(
        torch.randn(64, 3, 6, 6), size=32, mode="bicubic"
    )  # large shapes, as photographs have
    images, ours = smooth + 0.3 * torch.randn_like(smooth), UltimusNet()
    default, basis = utils.with_default_init(ours), ours.blocks[0].key.weight
    directions = [
        (x - x.mean(0)) @ basis.T for x in utils.block_outputs(copy.deepcopy(ours).train(), images)
    ]
    assert all(
        (passed - directions[0]).norm() < 0.15 * directions[0].norm() for passed in directions
    )
    shares, default_shares = (utils.remaining_variance(net, images) for net in (ours, default))
    assert min(shares) > 0.9 * shares[1] > 0.01  # all but the first block pass on what they get
    assert default_shares == sorted(default_shares, reverse=True) and default_shares[4] < 1e-8
    for net in (ours, default):
        F.cross_entropy(net(images), torch.arange(64) % 10).backward()
    gradient, default_gradient = (net.stem[0].conv.weight.grad.norm() for net in (ours, default))
    assert default_gradient < 1e-4 * gradient


def test_an_image_never_takes_numbers_from_another_also_if_a_student_widens_the_last_convolution(
    net,
):
    net.stem[2].conv, net.stem[2].norm = torch.nn.Conv2d(32, 96, 3), torch.nn.BatchNorm2d(96)
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):  # by the keys, 48 > 8
        net(torch.randn(8, 3, 32, 32))


@pytest.mark.parametrize(
    "shape", [(3, 32, 32), (2, 1, 32, 32), (2, 3, 28, 28), (2, 32, 32, 3), (2, 3, 32, 32)]
)
def test_images_of_a_wrong_shape_or_not_normalised_are_refused_with_what_is_wanted(net, shape):
    images = torch.zeros(shape, dtype=torch.uint8 if shape == (2, 3, 32, 32) else torch.float32)
    with pytest.raises(
        ValueError, match=r"wants normalised float images of shape \(batch, 3, 32, 32\)"
    ) as error:
        net(images)
    assert f"{images.dtype} images of shape {shape}" in str(error.value)
