"""Networks with a state that runs over time, or a small memory in place of all pairs: retention, decays, cells."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tools.zoo.models import Case
from tools.zoo.models.sequences import LanguageModel, tokens


class Retention(nn.Module):
    """Decaying linear attention with a normalization for each head, and a gate (Sun et al. 2023)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.gate, self.leave = (nn.Linear(width, n * width, bias=False) for n in (3, 1, 1))
        self.heads_norm = nn.GroupNorm(heads, width)
        self.mlp_norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def _decay(self, length: int) -> Tensor:
        rates = torch.log(1 - 2.0 ** (-2.0 - torch.arange(self.heads)))
        distance = torch.arange(length)[:, None] - torch.arange(length)
        decay = torch.exp(rates[:, None, None] * distance) * (distance >= 0)
        return decay / decay.sum(-1, keepdim=True).sqrt()

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(-1, -2)) * q.shape[-1] ** -0.5 * self._decay(x.shape[1])
        weights = weights / weights.detach().abs().sum(-1, keepdim=True).clamp(min=1)
        out = (weights @ v).transpose(1, 2).flatten(2)
        out = self.heads_norm(out.flatten(0, 1)).view_as(x)
        x = x + self.leave(F.silu(self.gate(h)) * out)
        return x + self.mlp(self.mlp_norm(x))


def retnet(*, seed: int = 0, batch: int = 4, width: int = 32) -> Case:
    """Two layers of retention, in parallel form."""
    return tokens(
        "retnet", lambda: LanguageModel(width, Retention(width, 4), Retention(width, 4)), batch=batch, seed=seed
    )


class RWKV(nn.Module):
    """Weighted sums with learned decays in logarithms, and squared rectifiers (Peng et al. 2023)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.time_norm, self.channel_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mix = nn.Parameter(torch.rand(5, width))
        self.k, self.v, self.r, self.out = (nn.Linear(width, width, bias=False) for _ in range(4))
        self.decay, self.first = nn.Parameter(torch.linspace(-3, 1, width)), nn.Parameter(torch.zeros(width))
        self.up, self.down, self.gate = (
            nn.Linear(a, b, bias=False) for a, b in ((width, 3 * width), (3 * width, width), (width, width))
        )

    def forward(self, x: Tensor) -> Tensor:
        k, v, r = (
            make(h) for make, h in zip((self.k, self.v, self.r), self._mixed(self.time_norm(x), 0, 3), strict=True)
        )
        x = x + self.out(torch.sigmoid(r) * self._weighted(k, v))
        up, gate = self._mixed(self.channel_norm(x), 3, 5)
        return x + torch.sigmoid(self.gate(gate)) * self.down(F.relu(self.up(up)).square())

    def _mixed(self, x: Tensor, first: int, last: int) -> list[Tensor]:
        """Blends of each token with the one before it."""
        before = F.pad(x, (0, 0, 1, -1))
        return [torch.lerp(before, x, share) for share in self.mix[first:last]]

    def _weighted(self, k: Tensor, v: Tensor) -> Tensor:
        """Sums of v weighted by exp(k), older ones decayed; the largest exponent is taken out at each step."""
        decay = -torch.exp(self.decay)
        above, below, top = torch.zeros_like(v[:, 0]), torch.zeros_like(v[:, 0]), torch.full_like(v[:, 0], -1e38)
        outputs = []
        for t in range(k.shape[1]):
            now = self.first + k[:, t]
            largest = torch.maximum(top, now)
            old, new = torch.exp(top - largest), torch.exp(now - largest)
            outputs.append((old * above + new * v[:, t]) / (old * below + new))
            largest = torch.maximum(top + decay, k[:, t])
            old, new = torch.exp(top + decay - largest), torch.exp(k[:, t] - largest)
            above, below, top = old * above + new * v[:, t], old * below + new, largest
        return torch.stack(outputs, 1)


def rwkv(*, seed: int = 0, batch: int = 8, width: int = 48) -> Case:
    """Two layers of RWKV, the recurrence as a loop."""
    return tokens("rwkv", lambda: LanguageModel(width, RWKV(width), RWKV(width)), batch=batch, seed=seed, length=8)


class GatedLinearAttention(nn.Module):
    """Linear attention whose decays depend on the input, a scan by running sums of logarithms (Yang et al. 2024)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm, self.head_norm = heads, nn.RMSNorm(width), nn.RMSNorm(width // heads)
        self.qkv, self.gate, self.leave = (nn.Linear(width, n * width, bias=False) for n in (3, 1, 1))
        self.decay = nn.Sequential(nn.Linear(width, 8, bias=False), nn.Linear(8, heads))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = self.qkv(h).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        decay = (F.logsigmoid(self.decay(h)) / 4).cumsum(1).transpose(1, 2)
        causal = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool).tril()
        apart = (decay[..., :, None] - decay[..., None, :]).masked_fill(~causal, -torch.inf)
        out = (q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 * torch.exp(apart)) @ v
        out = self.head_norm(out.transpose(1, 2)).flatten(2)
        return x + self.leave(out * F.silu(self.gate(h)))


def gated_linear_attention(*, seed: int = 0, batch: int = 4, width: int = 32) -> Case:
    """Two layers with a normalization for each head."""
    layers = lambda: LanguageModel(width, *(GatedLinearAttention(width, 4) for _ in range(2)))  # noqa: E731
    return tokens("gated_linear_attention", layers, batch=batch, seed=seed)


class ConvLSTM(nn.Module):
    """Gates are convolutions, with peepholes (Shi et al. 2015): films (N, T, C, H, W) to the next frame."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.width, self.gates = width, nn.Conv2d(channels + width, 4 * width, 3, padding=1)
        self.peep, self.head = nn.Parameter(torch.zeros(3, width, 1, 1)), nn.Conv2d(width, channels, 1)

    def forward(self, film: Tensor) -> Tensor:
        hidden = film.new_zeros(film.shape[0], self.width, *film.shape[3:])
        cell = hidden
        for frame in film.unbind(1):
            enter, forget, leave, made = self.gates(torch.cat([frame, hidden], 1)).chunk(4, 1)
            enter, forget = torch.sigmoid(enter + self.peep[0] * cell), torch.sigmoid(forget + self.peep[1] * cell)
            cell = forget * cell + enter * torch.tanh(made)
            hidden = torch.sigmoid(leave + self.peep[2] * cell) * torch.tanh(cell)
        return torch.sigmoid(self.head(hidden))


def conv_lstm(*, seed: int = 0, batch: int = 2) -> Case:
    """The next frame of a film."""
    torch.manual_seed(seed)
    model, film, wanted = ConvLSTM(1, 12), torch.rand(batch, 5, 1, 16, 16), torch.rand(batch, 1, 16, 16).round()
    return Case("conv_lstm", model, (film,), lambda out: F.binary_cross_entropy(out.float(), wanted))


class LayerNormGRU(nn.Module):
    """A GRU written out, each product normalized: (N, T, width) to the same shape."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.enter, self.again = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, 3 * width, bias=False)
        self.enter_norm, self.again_norm = nn.LayerNorm(3 * width), nn.LayerNorm(3 * width)

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = torch.zeros_like(x[:, 0]), []
        for given in self.enter_norm(self.enter(x)).unbind(1):
            reset, update, made = given.chunk(3, -1)
            own_reset, own_update, own_made = self.again_norm(self.again(state)).chunk(3, -1)
            update = torch.sigmoid(update + own_update)
            made = torch.tanh(made + torch.sigmoid(reset + own_reset) * own_made)
            state = update * state + (1 - update) * made
            outputs.append(state)
        return torch.stack(outputs, 1)


def norm_gru(*, seed: int = 0, batch: int = 16, width: int = 48) -> Case:
    """A GRU by hand, with LayerNorm."""
    return tokens("norm_gru", lambda: LanguageModel(width, LayerNormGRU(width)), batch=batch, seed=seed, length=8)


class Perceiver(nn.Module):
    """A few latents read many inputs, and think among themselves (Jaegle et al. 2021): (N, T, C) to scores."""

    def __init__(self, channels: int, width: int, latents: int) -> None:
        super().__init__()
        self.latents = nn.Parameter(0.02 * torch.randn(latents, width))
        self.read = nn.MultiheadAttention(width, 1, kdim=channels, vdim=channels, batch_first=True)
        self.read_norm, self.input_norm = nn.LayerNorm(width), nn.LayerNorm(channels)
        self.think = nn.TransformerEncoderLayer(width, 4, 2 * width, 0.1, "gelu", batch_first=True, norm_first=True)
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        places = torch.linspace(-1, 1, x.shape[1])[:, None] * torch.pi * 2.0 ** torch.arange(4)
        x = torch.cat([x, places.sin().expand(x.shape[0], -1, -1), places.cos().expand(x.shape[0], -1, -1)], -1)
        inputs, h = self.input_norm(x), self.latents.expand(x.shape[0], -1, -1)
        for _ in range(2):  # one set of weights, read twice
            h = h + self.read(self.read_norm(h), inputs, inputs, need_weights=False)[0]
            h = self.think(h)
        return self.head(h.mean(1))


def perceiver(*, seed: int = 0, batch: int = 4) -> Case:
    """Latents with weights that are used twice."""
    torch.manual_seed(seed)
    model, x, labels = Perceiver(16, 32, 8), torch.randn(batch, 128, 8), torch.randint(10, (batch,))
    return Case("perceiver", model.train(), (x,), lambda out: F.cross_entropy(out, labels))


class Speech(nn.Module):
    """Spectra (N, T, 20) to log-probabilities (T / 2, N, letters): convolutions with glu, then gated recurrences."""

    def __init__(self, width: int, letters: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv1d(20, 2 * width, 5, 2, 2), nn.BatchNorm1d(2 * width), nn.GLU(1), nn.Dropout(0.1),
            nn.Conv1d(width, 2 * width, 5, padding=2), nn.BatchNorm1d(2 * width), nn.GLU(1),
        )  # fmt: skip
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.conv(x.transpose(1, 2)).transpose(1, 2))
        return F.log_softmax(self.head(F.hardtanh(h, 0, 20)).float(), -1).transpose(0, 1)


def speech(*, seed: int = 0, batch: int = 4) -> Case:
    """Speech recognition, with the loss over all alignments (CTC)."""
    torch.manual_seed(seed)
    model, x, text = Speech(32, 12).train(), torch.randn(batch, 64, 20), torch.randint(1, 12, (batch, 8))
    lengths = torch.full((batch,), 32), torch.full((batch,), 8)
    return Case("speech", model, (x,), lambda out: F.ctc_loss(out, text, *lengths))


BUILDERS: Sequence[Callable[..., Case]] = (
    retnet, rwkv, gated_linear_attention, conv_lstm, norm_gru, perceiver, speech,
)  # fmt: skip
