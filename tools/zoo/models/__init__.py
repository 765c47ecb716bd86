"""The zoo: small models of many kinds with random weights, for tests and tools. Nothing is downloaded.

Each builder returns a `Case`: a model in training mode, its inputs, a loss. Weights and inputs depend only on
the seed and the sizes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxapprox.demo.model import preact_resnet


@dataclass(frozen=True)
class Case:
    """A model ready for one training step: ``loss(model(*args)).backward()``.

    Attributes:
        name: for test ids.
        model: in training mode.
        args: its input tensors.
        loss: the model's output to a scalar tensor.
        batched: for each of ``args`` the dimension that grows with the batch, or None; (): the first of each does.
    """

    name: str
    model: nn.Module
    args: tuple[Tensor, ...]
    loss: Callable[[Any], Tensor]
    batched: tuple[int | None, ...] = ()


def mlp_dropout(*, seed: int = 0, batch: int = 64, width: int = 128, p: float = 0.2) -> Case:
    """Three linear layers with ReLU and dropout; classes from 64 features."""
    torch.manual_seed(seed)
    sizes = (64, width, width)
    hidden = [(nn.Linear(a, b), nn.ReLU(), nn.Dropout(p)) for a, b in pairwise(sizes)]
    model = nn.Sequential(*chain.from_iterable(hidden), nn.Linear(width, 10))
    return Case("mlp_dropout", model, (torch.randn(batch, sizes[0]),), classify(batch))


def demo_resnet(*, seed: int = 0, batch: int = 4, depth: int = 8, width: int = 8) -> Case:
    """The demonstration's pre-activation ResNet, with basic blocks, on 32x32 images."""
    torch.manual_seed(seed)
    model = preact_resnet(depth, width=width)
    return Case("demo_resnet", model, (torch.randn(batch, 3, 32, 32),), classify(batch))


class UNet(nn.Module):
    """Encoder and decoder of GroupNorm-SiLU-conv layers with concatenated skips; keeps (N, C, H, W)."""

    def __init__(self, channels: int, width: int, levels: int) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels)]
        self.stem = nn.Conv2d(channels, width, 3, padding=1)
        self.down = nn.ModuleList(self._layer(a, b) for a, b in pairwise([width, *widths]))
        self.up = nn.ModuleList(self._layer(a + b, b) for a, b in pairwise(widths[::-1]))
        self.head = nn.Conv2d(width, channels, 1)

    @staticmethod
    def _layer(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.GroupNorm(4, inputs), nn.SiLU(), nn.Conv2d(inputs, outputs, 3, padding=1))

    def forward(self, x: Tensor) -> Tensor:
        h, skips = self.stem(x), []
        for layer in self.down:
            h = layer(h)
            skips.append(h)
            h = F.avg_pool2d(h, 2)
        h = skips.pop()
        for layer in self.up:
            h = layer(torch.cat([F.interpolate(h, scale_factor=2.0), skips.pop()], dim=1))
        return self.head(h)


def unet(*, seed: int = 0, batch: int = 2, width: int = 16, levels: int = 3, size: int = 32) -> Case:
    """A U-Net that restores noisy images."""
    torch.manual_seed(seed)
    model, clean = UNet(3, width, levels), torch.randn(batch, 3, size, size)
    noisy = clean + 0.5 * torch.randn_like(clean)
    return Case("unet", model, (noisy,), lambda restored: F.mse_loss(restored, clean))


class GPTBlock(nn.Module):
    """A pre-LayerNorm transformer block with fused causal attention: (N, T, width) to the same shape."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(self.attention_norm(x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.proj(attended.transpose(1, 2).flatten(-2))
        return x + self.mlp(self.mlp_norm(x))


class GPT(nn.Module):
    """A language model with learned positions: tokens and targets (N, T), int64, to mean cross-entropy."""

    def __init__(self, layers: int, width: int, heads: int, sequence: int, vocab: int) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(vocab, width), nn.Embedding(sequence, width)
        self.blocks = nn.Sequential(*(GPTBlock(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, vocab, bias=False)
        for embedding in (self.tokens, self.positions):
            nn.init.normal_(embedding.weight, std=0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        positions = torch.arange(tokens.shape[1], device=tokens.device)
        h = self.blocks(self.tokens(tokens) + self.positions(positions))
        return F.cross_entropy(self.head(self.norm(h)).flatten(0, 1), targets.flatten())


def gpt(
    *, seed: int = 0, batch: int = 2, layers: int = 2, width: int = 64, sequence: int = 64, vocab: int = 256
) -> Case:
    """A small GPT; heads are 32 wide."""
    torch.manual_seed(seed)
    model = GPT(layers, width, max(1, width // 32), sequence, vocab)
    text = torch.randint(vocab, (batch, sequence + 1))
    return Case("gpt", model, (text[:, :-1].contiguous(), text[:, 1:].contiguous()), lambda loss: loss)


def gpt3(layers: int = 96) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """GPT-3's shape (width 12288, 96 heads, sequence 2048) on the meta device: 652 GiB of weights, none allocated."""
    with torch.device("meta"):
        text = torch.zeros(1, 2048, dtype=torch.long)
        return GPT(layers, width=12288, heads=96, sequence=2048, vocab=50257), (text, text)


def gpt2(*, seed: int = 0, batch: int = 2, layers: int = 2, width: int = 64, sequence: int = 32) -> Case:
    """GPT-2 of the transformers package, without dropout."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(
        n_layer=layers, n_embd=width, n_head=2, n_positions=sequence, vocab_size=256, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return _language_model("gpt2", GPT2LMHeadModel, config, seed, batch, sequence)


def llama(*, seed: int = 0, batch: int = 2, layers: int = 2, width: int = 64, sequence: int = 32) -> Case:
    """Llama of the transformers package: RMSNorm, rotary positions, SwiGLU, grouped-query attention."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=2 * width, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=sequence, vocab_size=256, use_cache=False,
    )  # fmt: skip
    return _language_model("llama", LlamaForCausalLM, config, seed, batch, sequence)


def bert(*, seed: int = 0, batch: int = 2, layers: int = 2, width: int = 64, sequence: int = 32) -> Case:
    """BERT of the transformers package for masked language modelling, with dropout of 0.1."""
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=4 * width, num_attention_heads=2,
        max_position_embeddings=sequence, vocab_size=256, hidden_dropout_prob=0.1,
        attention_probs_dropout_prob=0.1,
    )  # fmt: skip
    return _language_model("bert", BertForMaskedLM, config, seed, batch, sequence)


def _language_model(name: str, architecture: Any, config: Any, seed: int, batch: int, sequence: int) -> Case:
    """A model of the transformers package; tokens and targets are random."""
    torch.manual_seed(seed)
    model = architecture(config).train()
    tokens = torch.randint(config.vocab_size, (batch, sequence))
    targets = torch.randint(config.vocab_size, (batch, sequence))

    def loss(output: Any) -> Tensor:
        return F.cross_entropy(output.logits.flatten(0, 1), targets.flatten())

    return Case(name, model, (tokens,), loss)


def classify(batch: int, classes: int = 10) -> Callable[[Tensor], Tensor]:
    """Cross-entropy with random labels, drawn from torch's global generator."""
    labels = torch.randint(classes, (batch,))
    return lambda scores: F.cross_entropy(scores, labels)


MODELS: dict[str, Callable[..., Case]] = {
    builder.__name__: builder for builder in (mlp_dropout, demo_resnet, unet, gpt, gpt2, llama, bert)
}
