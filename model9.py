"""The ULTIMUS network of TSAI EVA8, Session 9: C > C > C > U > U > U > U > FFC.

    images                                   (B, 3, 32, 32)
      and their mirror images                (2B, 3, 32, 32)
      conv 3x3, max-pool 2x2/1, mean 3x3/2   (2B, 16, 16, 16)   BatchNorm and ReLU
      conv 3x3, max-pool 2x2/1, mean 3x3/2   (2B, 32,  8,  8)   follow each max-pool
      conv 3x3, dilation 2, max-pool 5x5/1   (2B, 48,  8,  8)
      global average pooling over both       (B, 48)            X
      4 x Ultimus                            (B, 48)            K, Q, V: 48 > 8, Out: 8 > 48
      fully connected                        (B, 10)            logits

25,978 parameters. An image and its mirror image have the same logits. In eval mode they do not
depend on the rest of the batch.
"""

from collections import OrderedDict

import torch
from torch import nn


class Ultimus(nn.Module):
    """One ULTIMUS block (assignment, step 4): attention between the entries of one image's Q, K."""

    def __init__(self):
        super().__init__()
        self.key = nn.Linear(48, 8)
        self.query = nn.Linear(48, 8)
        self.value = nn.Linear(48, 8)
        self.out = nn.Linear(8, 48)

    def attend(self, x):
        """Compute the attention maps and the output of the block.

            AM[i, j] = softmax over j of (q_i k_j), divided by sqrt(8)
            Z[j]     = sum over i of v_i AM[i, j]
            out      = Out(Z)

        Args:
            x: (B, 48).

        Returns:
            AM, (B, 8, 8), each row of sum 1/sqrt(8); and the output, (B, 48).
        """
        k, q, v = self.key(x), self.query(x), self.value(x)  # (B, 8) each
        scores = torch.einsum("...i,...j->...ij", q, k)  # (B, 8, 8)
        attention = scores.softmax(dim=-1) / 8**0.5  # (B, 8, 8)
        z = torch.einsum("...i,...ij->...j", v, attention)  # (B, 8)
        return attention, self.out(z)

    def forward(self, x):
        """Map (B, 48) to (B, 48)."""
        return self.attend(x)[1]


def convolution(in_channels, out_channels, pool, average, dilation=1):
    """A 3x3 convolution, a max-pool, BatchNorm, ReLU and an average pool (or none: Identity)."""
    options = dict(padding=dilation, dilation=dilation, bias=False)
    conv, norm = nn.Conv2d(in_channels, out_channels, 3, **options), nn.BatchNorm2d(out_channels)
    layers = OrderedDict(conv=conv, pool=pool, norm=norm, relu=nn.ReLU(), average=average)
    return nn.Sequential(layers)


class UltimusNet(nn.Module):
    """Three convolutions, four blocks in a row, one fully connected layer.

    ``block``: the class of the blocks, ``Ultimus`` or one with the same four layers.
    """

    def __init__(self, block=Ultimus):
        super().__init__()
        self.stem = nn.Sequential(
            convolution(3, 16, nn.MaxPool2d(2, stride=1), nn.AvgPool2d(3, stride=2, padding=1)),
            convolution(16, 32, nn.MaxPool2d(2, stride=1), nn.AvgPool2d(3, stride=2, padding=1)),
            convolution(32, 48, nn.MaxPool2d(5, stride=1, padding=2), nn.Identity(), dilation=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.blocks = nn.Sequential(*[block() for _ in range(4)])
        self.fc = nn.Linear(48, 10)
        self.init_as_projection()

    @torch.no_grad()
    def init_as_projection(self, c=0.25):
        """Initialise each block as nearly the projection on the same eight directions.

        The rows of ``basis`` are orthonormal. Each has the sum zero, so that the means of the
        entries of X, which are similar and positive, nearly cancel in k = basis x. With query
        biases of about +c, -c, +c, ... and v = (+1, -1, +1, ...) + c mean(k), to first order in k,

            Z = c/sqrt(8) k,   out = basis^T sqrt(8)/c Z = basis^T basis x

        so four blocks in a row pass the eight directions on nearly unchanged (the aim of orthogonal
        initialisation, Saxe et al., https://arxiv.org/abs/1312.6120). Out maps 8 numbers to 48: no
        block passes more. The notebook derives it.

        Args:
            c: mean size of a query bias.
        """
        basis = zero_sum_columns(48, 8).T  # (8, 48)
        # rows of AM that start equal would stay equal
        sizes = c * torch.linspace(0.4, 1.6, 4).repeat_interleave(2)
        signs = torch.tensor([1.0, -1.0]).repeat(4)
        for block in self.blocks:
            for layer in (block.key, block.query, block.value, block.out):
                nn.init.zeros_(layer.bias)
            block.key.weight.copy_(basis)
            nn.init.zeros_(block.query.weight)
            block.query.bias.copy_(sizes * signs)
            block.value.weight.copy_(c * basis.mean(0).expand(8, -1))
            block.value.bias.copy_(signs)
            block.out.weight.copy_(basis.T * 8**0.5 / c)
        classes = zero_sum_columns(10, 8)  # each class reads all eight directions
        self.fc.weight.copy_(classes @ basis / 3**0.5)  # rows about as long as PyTorch's, 1/sqrt(3)

    def forward(self, images):
        """Map normalised images (B, 3, 32, 32) to logits (B, 10).

        Raises:
            ValueError: the images have another shape or are not normalised to floats.
        """
        if images.shape[1:] != (3, 32, 32) or not images.is_floating_point():
            got = f"got {images.dtype} images of shape {tuple(images.shape)}"
            raise ValueError(
                f"{got}; UltimusNet needs normalised float images of shape (batch, 3, 32, 32)"
            )
        return self.fc(self.blocks(self.features(images)))  # (B, 10)

    def features(self, images):
        """X, the input of the blocks: normalised images (B, 3, 32, 32) to (B, 48).

        X is the mean over an image and its mirror image. So it is the same for both: an average
        over a group is invariant to it (Cohen & Welling 2016, https://arxiv.org/abs/1602.07576).
        """
        both = torch.cat([images, images.flip(3)])  # (2B, 3, 32, 32)
        x, mirrored = self.pool(self.stem(both)).flatten(1).chunk(2)  # (B, 48) each
        return (x + mirrored) / 2


def zero_sum_columns(rows, columns):
    """A random (rows, columns) matrix with orthonormal columns, each of sum zero."""
    matrix = torch.randn(rows, columns)
    return torch.linalg.qr(matrix - matrix.mean(0)).Q
