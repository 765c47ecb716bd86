"""The models of the GPU benchmark, at any batch, in float32 or under bfloat16 autocast; random weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from fxapprox.demo.model import preact_resnet
from tools.zoo.models import Case
from tools.zoo.models.benchmarks import classifier, images, language_model

PRECISIONS = ("fp32", "bf16")


class Autocast(nn.Module):
    """A model under bfloat16 autocast; parameters stay float32."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any) -> Any:
        with torch.autocast(args[0].device.type, torch.bfloat16):
            return self.inner(*args)


def _resnet(batch: int, *depths: int) -> Case:
    config = transformers.ResNetConfig(depths=list(depths))
    return classifier("resnet", transformers.ResNetForImageClassification(config), images(batch, 224))


def _gpt2(batch: int, layers: int, heads: int) -> Case:
    config = transformers.GPT2Config(n_layer=layers, n_head=heads, n_embd=64 * heads)
    return language_model("gpt2", transformers.GPT2LMHeadModel, config, _tokens(batch, 1024))


def _llama_1b(batch: int) -> Case:
    config = transformers.LlamaConfig(
        vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32,
        num_key_value_heads=8, max_position_embeddings=2048, tie_word_embeddings=True,
    )  # fmt: skip
    return language_model("llama-1b", transformers.LlamaForCausalLM, config, _tokens(batch, 2048))


def _vit_large(batch: int) -> Case:
    config = transformers.ViTConfig(
        hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return classifier("vit-large", transformers.ViTForImageClassification(config), images(batch, 224))


def _tokens(batch: int, length: int) -> Tensor:
    return torch.randint(0, 50257, (batch, length))


def _tiny(batch: int) -> Case:
    return classifier("tiny", preact_resnet(8), images(batch, 16))


# (what builds it, the batch of the comparison); tiny is there to try the benchmark itself, on any device
MODELS: dict[str, tuple[Callable[[int], Case], int]] = {
    "resnet-50": (lambda batch: _resnet(batch, 3, 4, 6, 3), 64),
    "resnet-152": (lambda batch: _resnet(batch, 3, 8, 36, 3), 32),
    "gpt2-medium": (lambda batch: _gpt2(batch, 24, 16), 8),
    "gpt2-large": (lambda batch: _gpt2(batch, 36, 20), 4),
    "llama-1b": (_llama_1b, 2),
    "vit-large": (_vit_large, 32),
    "tiny": (_tiny, 16),
}


def target(model: str, precision: str, batch: int) -> tuple[nn.Module, tuple[Any, ...], Callable[[Any], Any]]:
    """What ``fxapprox bench`` wants of a target's factory."""
    case = MODELS[model][0](batch)
    return Autocast(case.model) if precision == "bf16" else case.model, case.args, case.loss
