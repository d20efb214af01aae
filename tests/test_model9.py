"""What a user relies on in model9.py."""

import functools
import math

import pytest
import torch
from torch import testing

from model9 import Ultimus, UltimusNet

assert_close = functools.partial(testing.assert_close, atol=1e-4, rtol=0)


def test_a_block_computes_the_assignments_formula_for_each_image():
    torch.manual_seed(1)
    block = Ultimus().double()
    x = torch.randn(3, 48).double() * torch.tensor([[0.1], [1], [5]])
    for image, attention, out in zip(x, block.attend(x)[0], block(x)):
        q, k, v = block.query(image), block.key(image), block.value(image)
        powers = torch.outer(q, k).exp()
        am = powers / powers.sum(1, keepdim=True) / 8**0.5
        assert_close(attention, am)
        assert_close(out, block.out(v @ am))


@torch.no_grad()
def test_given_weights_give_the_logits_that_they_always_gave():
    def numbers(*shape):
        """From -1 to 1."""
        numbers = torch.arange(math.prod(shape), dtype=torch.double)
        return numbers.square().sin().view(shape)

    net = UltimusNet().double().eval()
    for parameter in net.parameters():
        parameter.copy_(numbers(*parameter.shape) / parameter[0].numel() ** 0.5)
    (logits,) = net(numbers(1, 3, 32, 32))
    assert_close(logits[:2], torch.tensor([3.5617, 0.5634]).double())


def test_in_eval_mode_an_images_logits_do_not_depend_on_the_batch(net):
    net.double().eval()
    images = torch.randn(9, 3, 32, 32).double()
    alone = torch.cat([net(image[None]) for image in images])
    assert_close(net(images), alone)


@pytest.mark.parametrize("mode", [True, False])
def test_an_image_and_its_mirror_image_have_the_same_logits_also_in_training_mode(net, mode):
    net.double().train(mode)
    images = torch.randn(4, 3, 32, 32).double()
    assert_close(net(images), net(images.flip(3)))


def test_new_blocks_read_the_same_eight_orthonormal_directions_of_sum_zero(net):
    for block in net.blocks:
        basis = block.key.weight
        assert torch.equal(basis, net.blocks[0].key.weight)
        assert_close(basis @ basis.T, torch.eye(8))
        assert_close(basis.sum(1), torch.zeros(8))
        assert not block.query.weight.any()
        assert len(block.query.bias.unique()) == 8  # rows of the map that start equal stay equal
        assert_close(block.query.bias.abs().mean(), torch.tensor(0.25))
    singular = torch.linalg.svdvals(net.fc.weight @ basis.T)  # of the last layer on them
    assert_close(singular, torch.full([8], 3**-0.5))


def test_to_first_order_new_blocks_are_the_projection_on_these_directions(net):
    basis = net.blocks[0].key.weight
    jacobian = torch.func.jacrev(net.blocks)(torch.zeros(48))
    assert_close(jacobian, basis.T @ basis)


WRONG = [torch.zeros(2, 32, 32, 3), torch.zeros(2, 3, 32, 32).byte()]


@pytest.mark.parametrize("images", WRONG)
def test_images_of_another_shape_or_of_bytes_are_refused_with_what_is_wanted(net, images):
    with pytest.raises(ValueError, match=r"normalised float images of shape \(batch, 3, 32, 32\)"):
        net(images)
