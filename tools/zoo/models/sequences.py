"""Networks that read sequences: recurrent, scanned, convolutional, and transformers of several kinds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention.flex_attention import create_block_mask, flex_attention

from tools.zoo.models import Case

VOCABULARY = 64


def tokens(name: str, build: Callable[[], nn.Module], *, batch: int, seed: int, length: int = 32) -> Case:
    """A model that predicts the next of random tokens: (batch, length), int64, to scores (batch, length, 64)."""
    torch.manual_seed(seed)
    model = build().train()
    text = torch.randint(VOCABULARY, (batch, length + 1))
    targets = text[:, 1:].flatten()
    return Case(name, model, (text[:, :-1].contiguous(),), lambda out: F.cross_entropy(out.flatten(0, 1), targets))


class LanguageModel(nn.Module):
    """Embedding, layers that keep (N, T, width), LayerNorm, scores."""

    def __init__(self, width: int, *layers: nn.Module) -> None:
        super().__init__()
        self.embedding, self.layers = nn.Embedding(VOCABULARY, width), nn.Sequential(*layers)
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        return self.head(self.norm(self.layers(self.embedding(text))))


class Recurrent(nn.Module):
    """A module of torch.nn that returns (output, state); the output alone."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


def lstm(*, seed: int = 0, batch: int = 4, width: int = 32) -> Case:
    """nn.LSTM, two layers with dropout between them; Dynamo runs nn.LSTM as it is."""
    return tokens(
        "lstm",
        lambda: LanguageModel(width, Recurrent(nn.LSTM(width, width, 2, batch_first=True, dropout=0.1))),
        batch=batch,
        seed=seed,
    )


class Unrolled(nn.Module):
    """A recurrent cell, one step after the other: (N, T, width) to the same shape."""

    def __init__(self, cell: nn.LSTMCell | nn.GRUCell) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: Tensor) -> Tensor:
        state, outputs = None, []
        for step in x.unbind(1):
            state = self.cell(step, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs, dim=1)


def lstm_cells(*, seed: int = 0, batch: int = 16, width: int = 64) -> Case:
    """LSTM cells, unrolled in Python."""
    return tokens(
        "lstm_cells",
        lambda: LanguageModel(width, Unrolled(nn.LSTMCell(width, width))),
        batch=batch,
        seed=seed,
        length=8,
    )


def gru_cells(*, seed: int = 0, batch: int = 16, width: int = 64) -> Case:
    """GRU cells, unrolled in Python."""
    return tokens(
        "gru_cells", lambda: LanguageModel(width, Unrolled(nn.GRUCell(width, width))), batch=batch, seed=seed, length=8
    )


class Mamba(nn.Module):
    """A selective state space (Gu and Dao 2023): short causal convolution, scan with input-dependent steps, gate."""

    def __init__(self, width: int, states: int) -> None:
        super().__init__()
        inner = 2 * width
        self.states, self.norm = states, nn.RMSNorm(width)
        self.enter, self.leave = nn.Linear(width, 2 * inner, bias=False), nn.Linear(inner, width, bias=False)
        self.conv = nn.Conv1d(inner, inner, 4, padding=3, groups=inner)
        self.select, self.step = nn.Linear(inner, 2 * states + 4, bias=False), nn.Linear(4, inner)
        self.log_decay = nn.Parameter(torch.log(torch.arange(1.0, states + 1).repeat(inner, 1)))
        self.skip = nn.Parameter(torch.ones(inner))

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.enter(self.norm(x)).chunk(2, dim=-1)
        h = F.silu(self.conv(h.transpose(1, 2))[..., : x.shape[1]].transpose(1, 2))
        return x + self.leave((self._scan(h) + self.skip * h) * F.silu(gate))

    def _scan(self, h: Tensor) -> Tensor:
        """s_t = exp(dt_t A) s_(t-1) + dt_t B_t h_t, and y_t = C_t s_t."""
        low, enter, leave = self.select(h).split([4, self.states, self.states], dim=-1)
        step = F.softplus(self.step(low))
        decay = torch.exp(step[..., None] * -torch.exp(self.log_decay))
        added = (step * h)[..., None] * enter[:, :, None, :]
        state, outputs = torch.zeros_like(added[:, 0]), []
        for t in range(h.shape[1]):
            state = decay[:, t] * state + added[:, t]
            outputs.append((state * leave[:, t, None, :]).sum(-1))
        return torch.stack(outputs, dim=1)


def mamba(*, seed: int = 0, batch: int = 4, width: int = 32) -> Case:
    """Two Mamba layers, the scan as a loop."""
    return tokens(
        "mamba", lambda: LanguageModel(width, Mamba(width, 8), Mamba(width, 8)), batch=batch, seed=seed, length=8
    )


class LinearAttention(nn.Module):
    """Causal attention without a softmax, as running sums (Katharopoulos et al. 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).unbind(2)
        q, k = F.elu(q) + 1, F.elu(k) + 1
        sums = torch.einsum("bthd,bthe->bthde", k, v).cumsum(1)
        scale = torch.einsum("bthd,bthd->bth", q, k.cumsum(1)) + 1e-6
        return x + self.proj((torch.einsum("bthd,bthde->bthe", q, sums) / scale[..., None]).flatten(2))


def linear_attention(*, seed: int = 0, batch: int = 4, width: int = 32) -> Case:
    """Two layers of linear attention."""
    return tokens(
        "linear_attention",
        lambda: LanguageModel(width, LinearAttention(width, 2), LinearAttention(width, 2)),
        batch=batch,
        seed=seed,
        length=16,
    )


class GatedConv(nn.Module):
    """WaveNet's layer (van den Oord et al. 2016): a dilated causal convolution with weight normalization, gated."""

    def __init__(self, width: int, dilation: int) -> None:
        super().__init__()
        self.reach = 2 * dilation
        self.conv = nn.utils.parametrizations.weight_norm(nn.Conv1d(width, 2 * width, 3, dilation=dilation))
        self.out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.conv(F.pad(x.transpose(1, 2), (self.reach, 0))).chunk(2, dim=1)
        return x + self.out(torch.tanh(left) * torch.sigmoid(right)).transpose(1, 2)


def wavenet(*, seed: int = 0, batch: int = 4, width: int = 32) -> Case:
    """Dilated causal convolutions."""
    return tokens(
        "wavenet",
        lambda: LanguageModel(width, *(GatedConv(width, dilation) for dilation in (1, 2, 4))),
        batch=batch,
        seed=seed,
    )


class Experts(nn.Module):
    """A mixture of experts: each token goes through the two that its gate prefers, gathered and scattered by index."""

    def __init__(self, width: int, count: int) -> None:
        super().__init__()
        self.norm, self.gate = nn.LayerNorm(width), nn.Linear(width, count, bias=False)
        self.enter = nn.Parameter(torch.randn(count, width, 2 * width) * width**-0.5)
        self.leave = nn.Parameter(torch.randn(count, 2 * width, width) * (2 * width) ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.norm(x).flatten(0, 1)
        weights, chosen = self.gate(flat).softmax(-1).topk(2, dim=-1)
        order = chosen.flatten().argsort(stable=True)
        owner = order // 2
        hidden = torch.einsum("tc,tch->th", flat[owner], self.enter[chosen.flatten()[order]])
        out = torch.einsum("th,thc->tc", F.silu(hidden), self.leave[chosen.flatten()[order]])
        weighted = out * (weights / weights.sum(-1, keepdim=True)).flatten()[order, None]
        return x + torch.zeros_like(flat).index_add(0, owner, weighted.to(flat.dtype)).view_as(x)


def experts(*, seed: int = 0, batch: int = 4, width: int = 32) -> Case:
    """Linear attention and a mixture of experts."""
    return tokens(
        "experts",
        lambda: LanguageModel(width, LinearAttention(width, 2), Experts(width, 4)),
        batch=batch,
        seed=seed,
        length=8,
    )


class Translator(nn.Module):
    """nn.Transformer over two sequences of tokens, the decoder causal, with a padding mask on the encoder's side."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width, padding_idx=0)
        self.transformer = nn.Transformer(width, 2, 2, 2, 2 * width, dropout=0.1, batch_first=True)
        self.head = nn.Linear(width, VOCABULARY)

    def forward(self, source: Tensor, target: Tensor) -> Tensor:
        length, padding = target.shape[1], source == 0
        causal = torch.triu(torch.ones(length, length, dtype=torch.bool, device=target.device), diagonal=1)
        read, written = self.embedding(source), self.embedding(target)
        hidden = self.transformer(
            read, written, tgt_mask=causal, tgt_is_causal=True,
            src_key_padding_mask=padding, memory_key_padding_mask=padding,
        )  # fmt: skip
        return self.head(hidden)


def transformer(*, seed: int = 0, batch: int = 4, length: int = 16) -> Case:
    """Encoder and decoder of torch.nn, with dropout; the last tokens of each source are padding."""
    torch.manual_seed(seed)
    model = Translator(32)
    source, target = (torch.randint(1, VOCABULARY, (batch, length)) for _ in range(2))
    source[:, -3:] = 0
    targets = torch.randint(VOCABULARY, (batch * length,))
    return Case("transformer", model, (source, target), lambda out: F.cross_entropy(out.flatten(0, 1), targets))


class FlexBlock(nn.Module):
    """FlexAttention with a causal block mask and a bias that falls with distance (ALiBi): (N, T, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.norm = heads, nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(x)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        length = x.shape[1]
        mask = create_block_mask(_causal, None, None, length, length, device=x.device.type)
        attended = flex_attention(q, k, v, score_mod=_nearer, block_mask=mask)
        assert isinstance(attended, Tensor)
        return x + self.proj(attended.transpose(1, 2).flatten(2))


def _causal(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return query >= key


def _nearer(score: Tensor, batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return score - (query - key) * 2.0 ** -(head + 1)


def flex_attention_gpt(*, seed: int = 0, batch: int = 2, width: int = 32) -> Case:
    """A transformer on FlexAttention."""
    return tokens(
        "flex_attention_gpt",
        lambda: LanguageModel(width, FlexBlock(width, 2), FlexBlock(width, 2)),
        batch=batch,
        seed=seed,
        length=128,
    )


BUILDERS: Sequence[Callable[..., Case]] = (
    lstm, lstm_cells, gru_cells, mamba, linear_attention, wavenet, experts, transformer, flex_attention_gpt,
)  # fmt: skip
