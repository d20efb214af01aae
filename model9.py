"""The ULTIMUS network of TSAI EVA8, Session 9: C > C > C > U > U > U > U > FFC.

    images                       (B,  3, 32, 32)
      conv 3x3, max-pool 3x3/2   (B, 16, 16, 16)   each followed by
      conv 3x3, max-pool 3x3/2   (B, 32,  8,  8)   BatchNorm and ReLU
      conv 3x3, max-pool 5x5/1   (B, 48,  8,  8)
      global average pooling     (B, 48)           X
      4 x Ultimus                (B, 48)           K, Q, V: 48 > 8, Out: 8 > 48
      fully connected            (B, 10)           logits

25,978 parameters. Each image is processed by itself: its logits in eval mode do
not depend on the other images of the batch.
"""

import torch
from torch import nn


class Ultimus(nn.Module):
    """One ULTIMUS block: attention between the 8 entries of one image's K and Q.

    With k, q, v the three 8-vectors of an image (assignment, step 4):

        AM[i, j] = softmax over j of (q_i k_j), divided by sqrt(8)    8 x 8
        Z[j]     = sum over i of v_i AM[i, j]                         8
        out      = Out(Z)                                             48

    Args:
        basis: (8, 48), orthonormal rows, an even number: the directions of the input that
            the block passes on at its start, unchanged, as a deep chain wants it (Saxe et
            al., https://arxiv.org/abs/1312.6120). Their number and length are those of K and X.
    """

    def __init__(self, basis):
        super().__init__()
        head, dim = basis.shape
        self.key = nn.Linear(dim, head)
        self.query = nn.Linear(dim, head)
        self.value = nn.Linear(dim, head)
        self.out = nn.Linear(head, dim)
        self.reset_parameters(basis)

    @torch.no_grad()
    def reset_parameters(self, basis):
        """Start as the projection on ``basis``: the key carries the signal through the block.

        q_i k_j is an outer product. Around zero, where PyTorch's default puts it, its
        softmax is uniform: AM has rank one and every entry of Z is the same number.
        With k = basis x, q = +c, -c, +c, ... and v = +1, -1, +1, ... + c k instead

            Z = c/sqrt(8) (k - mean(k)) + c/sqrt(8) mean(k)     to first order in k:

        the softmaxes carry the differences of the k_j, the values their mean. Out takes
        basis^T Z sqrt(8)/c, so that out = basis^T basis x. A small c widens the range of x
        in which that holds; this one was chosen on validation images.
        """
        c, head = 0.25, len(basis)
        for layer in (self.key, self.query, self.value, self.out):
            nn.init.zeros_(layer.bias)
        signs = torch.tensor([1.0, -1.0]).repeat(head // 2)
        self.key.weight.copy_(basis)
        self.query.weight.zero_()
        self.query.bias.copy_(c * signs)
        self.value.weight.copy_(c * basis)
        self.value.bias.copy_(signs)
        self.out.weight.copy_(basis.T * head**0.5 / c)

    def attention(self, x):
        """Attention maps of a batch.

        Args:
            x: (B, dim).

        Returns:
            AM, (B, head, head); every row sums to 1/sqrt(head), since the division
            comes after the softmax, as the assignment writes it.
        """
        k, q = self.key(x), self.query(x)  # (B, 8), (B, 8)
        scores = q.unsqueeze(-1) * k.unsqueeze(-2)  # (B, 8, 1) x (B, 1, 8) -> (B, 8, 8)
        return scores.softmax(dim=-1) / k.shape[-1] ** 0.5

    def forward(self, x):
        """Map (B, dim) to (B, dim)."""
        v = self.value(x).unsqueeze(-2)  # (B, 1, 8)
        z = (v @ self.attention(x)).squeeze(-2)  # (B, 1, 8) x (B, 8, 8) -> (B, 8)
        return self.out(z)  # (B, 48)


def conv_pool(in_channels, out_channels, pool, stride):
    """3x3 convolution, overlapping max-pooling (a window wider than its stride), BatchNorm, ReLU.

    Pooling at stride 2 first leaves BatchNorm and ReLU a quarter of their work. A wide
    window lets an entry of the last map see more of the image, without a parameter.
    """
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.MaxPool2d(pool, stride, padding=pool // 2),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )


class UltimusNet(nn.Module):
    """Three convolutions, four ULTIMUS blocks in a row, one fully connected layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(
            conv_pool(3, 16, pool=3, stride=2),
            conv_pool(16, 32, pool=3, stride=2),
            conv_pool(32, 48, pool=5, stride=1),  # the average that follows takes every place, not every fourth
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        basis = nn.init.orthogonal_(torch.empty(8, 48))  # the same for all blocks, which pass on the same directions
        self.blocks = nn.Sequential(*[Ultimus(basis) for _ in range(4)])
        self.fc = nn.Linear(48, 10)
        classes = torch.randn(10, 8)
        classes = torch.linalg.qr(classes - classes.mean(0)).Q  # orthonormal columns, each of sum zero
        with torch.no_grad():  # read all directions alike; 1/sqrt(3) is the size of PyTorch's default
            self.fc.weight.copy_(classes @ basis / 3**0.5)

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
