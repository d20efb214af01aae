"""The ULTIMUS network of TSAI EVA8, Session 9: C > C > C > U > U > U > U > FFC.

    images                                   (B,  3, 32, 32)
      conv 3x3, max-pool 2x2/1, blur 3x3/2   (B, 16, 16, 16)   BatchNorm and ReLU
      conv 3x3, max-pool 2x2/1, blur 3x3/2   (B, 32,  8,  8)   come right behind
      conv 3x3, dilation 2, max-pool 5x5/1   (B, 48,  8,  8)   each max-pool
      global average pooling                 (B, 48)           X
      4 x Ultimus                            (B, 48)           K, Q, V: 48 > 8, Out: 8 > 48
      fully connected                        (B, 10)           logits

25,978 parameters. Each image is processed by itself: its logits in eval mode do
not depend on the other images of the batch.
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn


class Ultimus(nn.Module):
    """One ULTIMUS block: attention between the 8 entries of one image's K and Q (assignment, step 4)."""

    def __init__(self, dim=48, head=8):
        super().__init__()
        self.key = nn.Linear(dim, head)
        self.query = nn.Linear(dim, head)
        self.value = nn.Linear(dim, head)
        self.out = nn.Linear(head, dim)

    def attend(self, x):
        """Attention maps and their product with the values.

            AM[i, j] = softmax over j of (q_i k_j), divided by sqrt(8)
            Z[j]     = sum over i of v_i AM[i, j]

        Args:
            x: (B, dim).

        Returns:
            AM, (B, head, head), every row of sum 1/sqrt(head), since the division comes
            after the softmax, as the assignment writes it; and Z, (B, head).
        """
        k, q, v = self.key(x), self.query(x), self.value(x)  # (B, 8) each
        scores = torch.einsum("...i,...j->...ij", q, k)  # (B, 8, 8)
        attention = scores.softmax(dim=-1) / k.shape[-1] ** 0.5  # (B, 8, 8)
        return attention, torch.einsum("...i,...ij->...j", v, attention)  # (B, 8)

    def forward(self, x):
        """Map (B, dim) to (B, dim)."""
        _, z = self.attend(x)
        return self.out(z)  # (B, 48)


class Blur(nn.Module):
    """Halve an image's sides through the binomial filter (1, 2, 1) / 4 each way, so that less aliases.

    Zhang 2019, "Making convolutional networks shift-invariant again",
    https://arxiv.org/abs/1904.11486. (B, channels, H, W) to (B, channels, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, channels):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        self.register_buffer("filter", torch.outer(row, row).repeat(channels, 1, 1, 1), persistent=False)

    def forward(self, x):
        return F.conv2d(x, self.filter, stride=2, padding=1, groups=len(self.filter))


def convolution(in_channels, out_channels, pool, blur, dilation=1):
    """A 3x3 convolution with what follows it: max-pool, BatchNorm, ReLU and, to halve the sides, a blur."""
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=dilation, dilation=dilation, bias=False)
    return nn.Sequential(
        OrderedDict(
            conv=conv,
            pool=pool,
            norm=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(),
            blur=blur,
        )
    )


class UltimusNet(nn.Module):
    """Three convolutions, four ULTIMUS blocks in a row, one fully connected layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            convolution(3, 16, nn.MaxPool2d(2, stride=1), Blur(16)),
            convolution(16, 32, nn.MaxPool2d(2, stride=1), Blur(32)),
            convolution(32, 48, nn.MaxPool2d(5, stride=1, padding=2), nn.Identity(), dilation=2),
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.blocks = nn.Sequential(*[Ultimus() for _ in range(4)])
        self.fc = nn.Linear(48, 10)
        self.start_as_projection()

    @torch.no_grad()
    def start_as_projection(self, c=0.25):
        """Start every block as the projection on the same eight directions, which the last layer reads.

        q_i k_j is an outer product. Around zero, where PyTorch's default puts it, its
        softmax is uniform: AM has rank one and every entry of Z is the same number.
        Let the key carry the signal instead, with k = basis x, queries of about +c, -c, +c, ... and
        v = +1, -1, +1, ... + c mean(k). Then, to first order in k,

            Z = c/sqrt(8) (k - mean(k)) + c/sqrt(8) mean(k)

        where the softmaxes carry what the k_j differ by, and the values their mean. Out's
        weights are basis^T sqrt(8)/c, so that out = basis^T basis x, and a chain of blocks
        passes the eight directions on unchanged, as deep chains want it (Saxe et al.,
        https://arxiv.org/abs/1312.6120). Two details keep the error small and the rows apart:
        each direction has sum zero, so that what all channels of X share (it is never
        negative) doesn't fill the keys; and the queries are +-0.4 c, +-0.8 c, +-1.2 c and
        +-1.6 c, in pairs, for rows of AM that start equal would stay equal.

        Args:
            c: mean size of a query. A small one widens the range of k in which that holds,
                but a step of Q and V then weighs more, since Out enlarges it by 1/c.
        """
        basis = zero_sum_columns(48, 8).T  # (8, 48)
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
        classes = zero_sum_columns(10, 8)  # every class reads all eight directions, their mean none
        self.fc.weight.copy_(classes @ basis / 3**0.5)  # rows about as long as PyTorch's, 1/sqrt(3)

    def forward(self, images):
        """Map normalised images (B, 3, 32, 32) to logits (B, 10).

        Raises:
            ValueError: the images have another shape or lie on another device.
            TypeError: the images are not of the weights' floating-point type.
        """
        self._check(images)
        return self.fc(self.blocks(self.features(images)))  # (B, 10)

    def features(self, images):
        """X, what the blocks receive: normalised images (B, 3, 32, 32) to (B, 48)."""
        return self.pool(self.stem(images)).flatten(1)

    def _check(self, images):
        weight = self.fc.weight
        if images.ndim != 4 or images.shape[1:] != (3, 32, 32):
            raise ValueError(f"got images of shape {tuple(images.shape)}; UltimusNet wants (batch, 3, 32, 32)")
        if images.dtype != weight.dtype:
            raise TypeError(f"got {images.dtype} images; UltimusNet wants {weight.dtype}: normalise them first")
        if images.device != weight.device:
            raise ValueError(f"the images are on {images.device}, the network on {weight.device}: move one of them")


def zero_sum_columns(rows, columns):
    """A random (rows, columns) matrix with orthonormal columns, each of sum zero."""
    matrix = torch.randn(rows, columns)
    return torch.linalg.qr(matrix - matrix.mean(0)).Q
