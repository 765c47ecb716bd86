"""Models at the sizes that the benchmarks measure: of the transformers package, and the demonstration's networks."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn
from torch.nn import functional as F

from fxapprox.demo.model import preact_resnet
from tools.zoo.models import Case
from tools.zoo.models.language import LoRA


def images(count: int, size: int) -> Tensor:
    """(count, 3, size, size)."""
    return torch.randn(count, 3, size, size)


def classifier(name: str, model: nn.Module, x: Tensor) -> Case:
    """A model from images to class scores (two in transformers), or to an object that has them as ``logits``."""
    labels = torch.zeros(len(x), dtype=torch.int64)
    return Case(name, model.train(), (x,), lambda out: F.cross_entropy(getattr(out, "logits", out), labels))


def language_model(name: str, architecture: Any, config: Any, tokens: Tensor) -> Case:
    """A model of the transformers package that predicts tokens."""
    model = architecture(config).train()
    return Case(name, model, (tokens,), lambda out: F.cross_entropy(out.logits.flatten(0, 1), tokens.flatten()))


def preact(depth: int, batch: int = 32, *, bottleneck: bool = False) -> Case:
    """A pre-activation ResNet on images of 32x32."""
    model = preact_resnet(depth, block="bottleneck" if bottleneck else "basic")
    return classifier(f"resnet-{depth}", model, images(batch, 32))


def resnet_18(batch: int = 16) -> Case:
    config = transformers.ResNetConfig(
        depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], layer_type="basic", embedding_size=64
    )
    return classifier("resnet-18", transformers.ResNetForImageClassification(config), images(batch, 64))


def resnet_50(batch: int = 16) -> Case:
    config = transformers.ResNetConfig()
    return classifier("resnet-50", transformers.ResNetForImageClassification(config), images(batch, 64))


def vit(batch: int = 32) -> Case:
    config = transformers.ViTConfig(
        hidden_size=192, num_hidden_layers=4, num_attention_heads=3, intermediate_size=768, image_size=64,
        patch_size=8, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    return classifier("vit", transformers.ViTForImageClassification(config), images(batch, 64))


def convnext() -> Case:
    config = transformers.ConvNextConfig(hidden_sizes=[48, 96, 192, 384], depths=[2, 2, 4, 2])
    return classifier("convnext", transformers.ConvNextForImageClassification(config), images(16, 64))


def mobilenet() -> Case:
    config = transformers.MobileNetV2Config()
    return classifier("mobilenet-v2", transformers.MobileNetV2ForImageClassification(config), images(16, 64))


def llama(*, layers: int = 4, width: int = 384, vocab: int = 8192, batch: int = 8, length: int = 128) -> Case:
    """Heads are 64 wide."""
    config = transformers.LlamaConfig(
        num_hidden_layers=layers, hidden_size=width, intermediate_size=8 * width // 3, num_attention_heads=width // 64,
        num_key_value_heads=width // 64, vocab_size=vocab, use_cache=False,
    )  # fmt: skip
    return language_model("llama", transformers.LlamaForCausalLM, config, torch.randint(vocab, (batch, length)))


def gpt2(*, layers: int = 12, width: int = 256, vocab: int = 2048, batch: int = 16, length: int = 128) -> Case:
    """GPT-2, deep and narrow, so that activations outweigh gradients as in training at full size; heads are 64 wide."""
    config = transformers.GPT2Config(
        n_layer=layers, n_embd=width, n_head=width // 64, n_positions=length, vocab_size=vocab, use_cache=False,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    return language_model("gpt2", transformers.GPT2LMHeadModel, config, torch.randint(vocab, (batch, length)))


def bert(batch: int = 8) -> Case:
    config = transformers.BertConfig(
        num_hidden_layers=4, hidden_size=256, intermediate_size=1024, num_attention_heads=4, vocab_size=8192
    )
    return language_model("bert", transformers.BertForMaskedLM, config, torch.randint(8192, (batch, 128)))


class Translator(nn.Module):
    """T5 with the same tokens on both sides."""

    def __init__(self, vocab: int) -> None:
        super().__init__()
        config = transformers.T5Config(d_model=256, d_kv=64, d_ff=1024, num_layers=3, num_heads=4, vocab_size=vocab)
        self.t5 = transformers.T5ForConditionalGeneration(config)

    def forward(self, tokens: Tensor) -> Any:
        return self.t5(input_ids=tokens, decoder_input_ids=tokens, use_cache=False)


def t5() -> Case:
    tokens = torch.randint(8192, (8, 64))
    model = Translator(8192).train()
    return Case("t5", model, (tokens,), lambda out: F.cross_entropy(out.logits.flatten(0, 1), tokens.flatten()))


class WideHead(nn.Module):
    """An embedding, one MLP with a skip around it, a wide head: tokens (N,) to logits (N, vocab)."""

    def __init__(self, width: int, vocab: int) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(vocab, width), nn.Linear(width, vocab, bias=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def hidden(self, tokens: Tensor) -> Tensor:
        h = self.tokens(tokens)
        return h + self.mlp(h)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.hidden(tokens))


def wide_head(count: int = 2048, width: int = 128, vocab: int = 50_304) -> Case:
    """Logits that are much wider than what they are made of; each token predicts itself."""
    tokens = torch.randint(vocab, (count,))
    return Case("wide-head", WideHead(width, vocab).train(), (tokens,), lambda out: F.cross_entropy(out, tokens))


class Labelled(nn.Module):
    """A language model that is given its labels, as the Trainer does: tokens (N, T) to loss and logits."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, tokens: Tensor) -> Any:
        return self.inner(input_ids=tokens, labels=tokens)


def labelled(case: Case) -> Case:
    """A language model's step in the Trainer: tokens (N, T) are their own labels, each predicts the next one."""
    return Case(case.name, Labelled(case.model), case.args, lambda out: out.loss)


def with_adapters(case: Case, rank: int = 8) -> Case:
    """A Llama, frozen, with adapters without dropout beside all projections but the head. Mutates the model."""
    case.model.requires_grad_(False)
    for layer in case.model.model.layers:
        for part in (layer.self_attn, layer.mlp):
            for name, child in list(part.named_children()):
                if isinstance(child, nn.Linear):
                    adapter = LoRA(child, rank).eval()
                    nn.init.normal_(adapter.up.weight, std=0.1)  # at 0, as it starts, half of the gradients are 0
                    setattr(part, name, adapter)
    return case
