"""Losses inside the model: between embeddings, between two networks, between preferences."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import GPT, Case


def encoder(width: int) -> nn.Sequential:
    """Images (N, 3, 16, 16) to (N, width)."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(128, width),
    )  # fmt: skip


def whole(
    name: str, build: Callable[[], nn.Module], shapes: Sequence[tuple[int, ...]], *, batch: int, seed: int
) -> Case:
    """A model whose output is its loss, of random images."""
    torch.manual_seed(seed)
    model = build().train()
    return Case(name, model, tuple(torch.randn(batch, *shape) for shape in shapes), lambda loss: loss)


class Triplet(nn.Module):
    """Anchors nearer to what is like them than to the hardest of the others, by a margin (Schroff et al. 2015)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder(32)

    def forward(self, anchor: Tensor, same: Tensor) -> Tensor:
        a, p = (F.normalize(self.encoder(x)) for x in (anchor, same))
        apart = torch.cdist(a, p)
        own = apart.diagonal()
        hardest = (apart + 10 * torch.eye(len(a))).min(1).values
        return F.relu(own - hardest + 0.2).mean() + F.triplet_margin_loss(a, p, p.flip(0), swap=True)


def triplet(*, seed: int = 0, batch: int = 8) -> Case:
    """Triplets, the hardest mined in the batch."""
    return whole("triplet", Triplet, [(3, 16, 16)] * 2, batch=batch, seed=seed)


class ArcFace(nn.Module):
    """A margin on the angle to the class (Deng et al. 2019)."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.encoder, self.centres = encoder(32), nn.Parameter(torch.randn(classes, 32))

    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        cosine = F.linear(F.normalize(self.encoder(x)), F.normalize(self.centres))
        angle = torch.acos(cosine.clamp(-1 + 1e-7, 1 - 1e-7))
        wanted = F.one_hot(labels, cosine.shape[1]).bool()
        return F.cross_entropy(30 * torch.where(wanted, torch.cos(angle + 0.5), cosine), labels)


def arcface(*, seed: int = 0, batch: int = 16, classes: int = 20) -> Case:
    """Faces told apart by angles."""
    torch.manual_seed(seed)
    model, x = ArcFace(classes), torch.randn(batch, 3, 16, 16)
    return Case("arcface", model, (x, torch.randint(classes, (batch,))), lambda loss: loss)


class SimCLR(nn.Module):
    """Two views of each image nearer to each other than to all others, after a projection (Chen et al. 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(encoder(64), nn.ReLU(), nn.Linear(64, 32), nn.BatchNorm1d(32, affine=False))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        z = F.normalize(torch.cat([self.encoder(x), self.encoder(y)]))
        scores = (z @ z.T / 0.5).masked_fill(torch.eye(len(z), dtype=torch.bool), -torch.inf)
        return F.cross_entropy(scores, (torch.arange(len(z)) + len(x)) % len(z))


def simclr(*, seed: int = 0, batch: int = 8) -> Case:
    """Contrast between views; the normalization has no weights."""
    return whole("simclr", SimCLR, [(3, 16, 16)] * 2, batch=batch, seed=seed)


class CLIP(nn.Module):
    """Images and texts in one space, with a learned temperature (Radford et al. 2021)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.image = encoder(width)
        self.words = nn.Embedding(64, width)
        self.text = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.temperature = nn.Parameter(torch.tensor(2.6593))

    def forward(self, x: Tensor, text: Tensor) -> Tensor:
        h = self.text(self.words(text))
        image, words = F.normalize(self.image(x), dim=-1), F.normalize(h[torch.arange(len(h)), text.argmax(-1)], dim=-1)
        scores = self.temperature.exp().clamp(max=100) * image @ words.T
        own = torch.arange(len(h))
        return (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2


def clip_pair(*, seed: int = 0, batch: int = 8) -> Case:
    """Two encoders and the loss between them, both ways."""
    torch.manual_seed(seed)
    model, args = CLIP(32), (torch.randn(batch, 3, 16, 16), torch.randint(64, (batch, 12)))
    return Case("clip_pair", model, args, lambda loss: loss)


class VICReg(nn.Module):
    """Invariance, variance and covariance of two views (Bardes et al. 2022); a Barlow Twins term beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = encoder(24)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        a, b = self.encoder(x), self.encoder(y)
        total = 25 * F.mse_loss(a, b)
        for z in (a, b):
            z = z - z.mean(0)
            covariance = z.T @ z / (len(z) - 1)
            total = total + 25 * F.relu(1 - torch.sqrt(z.var(0) + 1e-4)).mean()
            total = total + (covariance.square().sum() - covariance.diagonal().square().sum()) / z.shape[1]
        a, b = ((z - z.mean(0)) / (z.std(0) + 1e-3) for z in (a, b))
        cross = a.T @ b / len(a)
        return total + 0.1 * (cross - torch.eye(len(cross))).square().sum()


def vicreg(*, seed: int = 0, batch: int = 16) -> Case:
    """Statistics of embeddings as a loss."""
    return whole("vicreg", VICReg, [(3, 16, 16)] * 2, batch=batch, seed=seed)


class Preference(nn.Module):
    """DPO (Rafailov et al. 2023): the answer preferred more likely than the other, beside a network that is frozen."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        self.policy, self.frozen = (GPT(1, width, 2, 24, vocabulary) for _ in range(2))
        self.frozen.requires_grad_(False)

    def forward(self, better: Tensor, worse: Tensor) -> Tensor:
        gains = []
        for text in (better, worse):
            own, fixed = (self._likelihood(network, text) for network in (self.policy, self.frozen))
            gains.append(own - fixed.detach())
        return -F.logsigmoid(0.1 * (gains[0] - gains[1])).mean()

    @staticmethod
    def _likelihood(network: GPT, text: Tensor) -> Tensor:
        h = network.blocks(network.tokens(text[:, :-1]) + network.positions(torch.arange(text.shape[1] - 1)))
        chances = network.head(network.norm(h)).float().log_softmax(-1)
        return chances.gather(-1, text[:, 1:, None]).squeeze(-1).sum(1)


def preference(*, seed: int = 0, batch: int = 4) -> Case:
    """Preferences over two texts."""
    torch.manual_seed(seed)
    model, args = Preference(32, 128), tuple(torch.randint(128, (batch, 17)) for _ in range(2))
    return Case("preference", model, args, lambda loss: loss)


BUILDERS: Sequence[Callable[..., Case]] = (triplet, arcface, simclr, clip_pair, vicreg, preference)
