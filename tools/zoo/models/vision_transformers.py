"""Networks that read an image as a sequence of patches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case
from tools.zoo.models.convnets import images


def mlp(width: int, inner: int, dropout: float = 0.0) -> nn.Sequential:
    """Two linear layers with GELU between them."""
    return nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width))


class ViTBlock(nn.Module):
    """Attention over all tokens and an MLP, each after a LayerNorm (Dosovitskiy et al. 2021): (N, T, width)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout, batch_first=True)
        self.mlp = mlp(width, 4 * width, dropout)

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x)
        x = x + self.attention(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.second(x))


class ViT(nn.Module):
    """Patches of 8x8, a class token, learned positions."""

    def __init__(self, width: int, heads: int, patches: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 8, 8)
        self.token, self.positions = (
            nn.Parameter(torch.zeros(1, 1, width)),
            nn.Parameter(torch.randn(1, patches + 1, width)),
        )
        self.blocks = nn.Sequential(*(ViTBlock(width, heads, 0.1) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.token.expand(x.shape[0], -1, -1), patches], dim=1) + self.positions
        return self.head(self.norm(self.blocks(tokens))[:, 0])


def vit(*, seed: int = 0, batch: int = 4) -> Case:
    """A Vision Transformer with nn.MultiheadAttention and dropout."""
    return images("vit", lambda: ViT(64, 2, 16), batch=batch, seed=seed)


class WindowAttention(nn.Module):
    """Attention inside windows, with a learned bias for each relative position: (windows, size**2, width)."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.heads, self.tokens = heads, size * size
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.biases = nn.Parameter(0.02 * torch.randn((2 * size - 1) ** 2, heads))
        at = torch.stack(torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")).flatten(1)
        apart = (at[:, :, None] - at[:, None, :]) + size - 1
        self.register_buffer("places", apart[0] * (2 * size - 1) + apart[1])

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """``mask``: (windows of one image, tokens, tokens), 0 or -100, added to the scores."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        bias = self.biases[self.places.flatten()].view(self.tokens, self.tokens, -1).permute(2, 0, 1)
        scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1) + bias
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return self.proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))


class SwinBlock(nn.Module):
    """Windowed attention, shifted or not, and an MLP (Liu et al. 2021): (N, H, W, width), H and W multiples of size."""

    def __init__(self, width: int, heads: int, size: int, shift: int, side: int) -> None:
        super().__init__()
        self.size, self.shift = size, shift
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = WindowAttention(width, heads, size), mlp(width, 2 * width)
        self.register_buffer("mask", self._mask(side) if shift else None)

    def _mask(self, side: int) -> Tensor:
        """Keeps what the shift has brought together from different edges of the image apart."""
        edge = torch.bucketize(torch.arange(side), torch.tensor([side - self.size, side - self.shift]), right=True)
        areas = self._windows((3 * edge[:, None] + edge)[None, :, :, None]).squeeze(-1)
        return torch.where(areas[:, None, :] == areas[:, :, None], 0.0, -100.0)

    def _windows(self, x: Tensor) -> Tensor:
        n, height, width, channels = x.shape
        x = x.view(n, height // self.size, self.size, width // self.size, self.size, channels)
        return x.transpose(2, 3).reshape(-1, self.size**2, channels)

    def _image(self, windows: Tensor, height: int, width: int) -> Tensor:
        down, across = height // self.size, width // self.size
        x = windows.view(-1, down, across, self.size, self.size, windows.shape[-1])
        return x.transpose(2, 3).reshape(-1, height, width, windows.shape[-1])

    def forward(self, x: Tensor) -> Tensor:
        h = torch.roll(self.first(x), (-self.shift, -self.shift), (1, 2))
        h = self._image(self.attention(self._windows(h), self.mask), x.shape[1], x.shape[2])
        x = x + torch.roll(h, (self.shift, self.shift), (1, 2))
        return x + self.mlp(self.second(x))


class PatchMerging(nn.Module):
    """Four neighbours become one token of twice the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.reduction = nn.LayerNorm(4 * width), nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        corners = [x[:, i::2, j::2] for j in (0, 1) for i in (0, 1)]
        return self.reduction(self.norm(torch.cat(corners, dim=-1)))


class Swin(nn.Module):
    """Two stages of a window and a shifted-window block; images of 32x32 are 8x8 patches."""

    def __init__(self, width: int, heads: int, size: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        first = [SwinBlock(width, heads, size, shift, 8) for shift in (0, size // 2)]
        second = [SwinBlock(2 * width, 2 * heads, size, 0, 4)]
        self.blocks = nn.Sequential(*first, PatchMerging(width), *second)
        self.norm, self.head = nn.LayerNorm(2 * width), nn.Linear(2 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        h = self.blocks(self.patches(x).permute(0, 2, 3, 1))
        return self.head(self.norm(h).mean((1, 2)))


def swin(*, seed: int = 0, batch: int = 4) -> Case:
    """A Swin Transformer: shifted windows, relative position bias, patch merging."""
    return images("swin", lambda: Swin(32, 2, 4), batch=batch, seed=seed)


class MixerBlock(nn.Module):
    """An MLP over the tokens, then one over the channels (Tolstikhin et al. 2021): (N, T, width)."""

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.tokens, self.channels = mlp(tokens, 2 * tokens), mlp(width, 4 * width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.first(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.second(x))


class Mixer(nn.Module):
    """Patches of 4x4 of images of 32x32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, width, 4, 4)
        self.blocks = nn.Sequential(*(MixerBlock(64, width) for _ in range(2)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.blocks(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


def mlp_mixer(*, seed: int = 0, batch: int = 4) -> Case:
    """MLP-Mixer."""
    return images("mlp_mixer", lambda: Mixer(48), batch=batch, seed=seed)


class CrossAttention(nn.Module):
    """DETR's decoder layer (Carion et al. 2020), with attention written out: queries (Q, width) read an image."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q, self.kv, self.proj = nn.Linear(width, width), nn.Linear(width, 2 * width), nn.Linear(width, width)
        self.norm, self.mlp = nn.LayerNorm(width), mlp(width, 2 * width)

    def forward(self, queries: Tensor, tokens: Tensor) -> Tensor:
        k, v = self.kv(tokens).chunk(2, dim=-1)
        scores = torch.einsum("bqc,btc->bqt", self.q(queries), k) * k.shape[-1] ** -0.5
        queries = self.norm(queries + self.proj(torch.einsum("bqt,btc->bqc", F.softmax(scores, dim=-1), v)))
        return queries + self.mlp(queries)


class DETR(nn.Module):
    """A strided convolution as the backbone, learned queries, and a class and a box for each: (N, Q, 4), (N, Q, 14)."""

    def __init__(self, width: int, queries: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.GELU(), nn.Conv2d(width, width, 3, padding=1))
        self.queries, self.positions = nn.Embedding(queries, width), nn.Parameter(0.1 * torch.randn(64, width))
        self.layers = nn.ModuleList(CrossAttention(width) for _ in range(2))
        self.boxes, self.classes = nn.Linear(width, 4), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.backbone(x).flatten(2).transpose(1, 2) + self.positions
        queries = self.queries.weight.expand(x.shape[0], -1, -1)
        for layer in self.layers:
            queries = layer(queries, tokens)
        return self.boxes(queries).sigmoid(), self.classes(queries)


def detr(*, seed: int = 0, batch: int = 4, queries: int = 8) -> Case:
    """A detector with two outputs and a loss of both; boxes are matched to queries in order."""
    torch.manual_seed(seed)
    model = DETR(48, queries)
    x, boxes, labels = torch.randn(batch, 3, 32, 32), torch.rand(batch, queries, 4), torch.randint(10, (batch, queries))

    def loss(found: tuple[Tensor, Tensor]) -> Tensor:
        return 5 * F.l1_loss(found[0], boxes) + F.cross_entropy(found[1].flatten(0, 1), labels.flatten())

    return Case("detr", model, (x,), loss)


BUILDERS: Sequence[Callable[..., Case]] = (vit, swin, mlp_mixer, detr)
