"""The rows of the table of real peaks and the systems in its columns: a training step of each, ready to be measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.frontend.tracing import fresh
from fxapprox.huggingface import without_logits
from tools.budget.models import Step, in_regions
from tools.zoo.models import Case, benchmarks, generative, unet, volumes

Head = tuple[Tensor, Tensor, Tensor | None, Tensor]  # rows, weight, bias, targets


@dataclass(frozen=True)
class Model:
    """A row.

    Attributes:
        about: what it is, in words.
        build: makes it, from torch's global seed.
        aim: what part of plain torch.compile's peak ours is to take at most.
        layers: what eager checkpoints run again, each by itself; None: there are no such blocks.
        head: what ``F.linear_cross_entropy`` takes, of the model and its inputs; None: no linear layer before the loss.
        apart: the model is compiled, and its loss taken of what it returns, as in the Trainer; else both together. Its
            logits are left out where fxapprox compiles it, in the line that docs/trainer.md names.
        autocast: the step runs in bfloat16, of float32 weights.
    """

    about: str
    build: Callable[[], Case]
    aim: str = ""
    layers: Callable[[Any], list[nn.ModuleList | nn.Sequential]] | None = None
    head: Callable[..., Head] | None = None
    apart: bool = False
    autocast: bool = False


@dataclass(frozen=True)
class System:
    """A way to run a step.

    Attributes:
        title: in the table.
        context: for what is compiled inside.
        options: of fxapprox; None: it is not fxapprox that compiles.
    """

    title: str
    context: Callable[[], AbstractContextManager[Any]] = contextlib.nullcontext
    options: dict[str, Any] | None = None


SYSTEMS = {
    "plain": System("torch.compile"),
    "auto-chunker": System("torch.compile, auto_chunker", adapter.auto_chunker),
    "budget-0.5": System("torch.compile, budget 0.5", partial(adapter.activation_memory_budget, 0.5)),
    "budget-0.2": System("torch.compile, budget 0.2", partial(adapter.activation_memory_budget, 0.2)),
    "linear-cross-entropy": System("torch.compile, linear_cross_entropy"),
    "checkpoint": System("eager, torch.utils.checkpoint"),
    "fxapprox-exact": System("fxapprox exact", options={"bits": None}),
    "fxapprox-8": System("fxapprox, 8 bits", options={"bits": 8}),
    "fxapprox-4": System("fxapprox, 4 bits", options={"bits": 4}),
}


class HeadStep(Step):
    """A step whose last linear layer and loss are one function."""

    def __init__(self, case: Case, head: Callable[..., Head]) -> None:
        super().__init__(case)
        self.head = head

    def forward(self, *args: Any) -> Tensor:
        rows, weight, bias, targets = self.head(self.model, *args)
        options = torch.nn.LinearCrossEntropyOptions()
        return F.linear_cross_entropy(rows, weight, targets, linear_bias=bias, options=options)


@dataclass(frozen=True)
class Running:
    """A step in a system.

    Attributes:
        step: whose parameters get gradients.
        run: from the step's arguments to its loss.
        compiled: what is called by ``run``.
        context: for the first steps.
    """

    step: Step
    run: Callable[..., Tensor]
    compiled: Any
    context: AbstractContextManager[Any]


def why_not(model: Model, system: str) -> str:
    """Why a system is not measured on a model, or ""."""
    if system == "checkpoint" and model.layers is None:
        return "no blocks"
    if system == "linear-cross-entropy":
        if not hasattr(F, "linear_cross_entropy"):
            return f"torch {torch.__version__} has none"
        if model.head is None:
            return "no cross-entropy of a wide linear layer"
    return ""


def started(model: Model, system: str) -> Running:
    """The same weights, inputs and targets every time; nothing has run."""
    torch.manual_seed(0)
    case, chosen = model.build(), SYSTEMS[system]
    step = Step(case)
    if system == "linear-cross-entropy" and model.head is not None:
        step = HeadStep(case, model.head)
    if system == "checkpoint" and model.layers is not None:
        for layers in model.layers(step.model):
            in_regions(layers, 1)
    apart = model.apart and system != "linear-cross-entropy"
    target = step.model if apart else step
    if chosen.options is not None:
        if model.apart:
            without_logits(cast(nn.Module, step.model.inner))
        compiled = fxapprox.compile(target, dynamic=False, **chosen.options)
    elif system == "checkpoint":
        compiled = target
    else:  # Dynamo would take another system's graph of the same code
        compiled = torch.compile(fresh(target), dynamic=False)

    def run(*args: Any) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=model.autocast):
            return step.loss(compiled(*args)) if apart else compiled(*args)

    return Running(step, run, compiled, chosen.context())


def _wide(model: benchmarks.WideHead, tokens: Tensor) -> Head:
    return model.hidden(tokens), model.head.weight, None, tokens


def _language(model: Any, tokens: Tensor) -> Head:
    """Of a model of the transformers package whose tokens predict themselves."""
    rows = model.base_model(tokens).last_hidden_state.flatten(0, 1)
    return rows, model.get_output_embeddings().weight, None, tokens.flatten()


def _labelled(model: benchmarks.Labelled, tokens: Tensor) -> Head:
    """The same, where each token predicts the next one."""
    return *_language(model.inner, tokens)[:3], F.pad(tokens, (0, 1), value=-100)[:, 1:].flatten()


def _bert(model: Any, tokens: Tensor) -> Head:
    head = model.cls.predictions
    rows = head.transform(model.base_model(tokens).last_hidden_state).flatten(0, 1)
    return rows, head.decoder.weight, head.decoder.bias, tokens.flatten()


def _unet(model: Any) -> list[nn.ModuleList | nn.Sequential]:
    return [model.down, model.up]


def _resnet(model: Any) -> list[nn.ModuleList | nn.Sequential]:
    return [stage.layers for stage in model.resnet.encoder.stages]


def _lora(about: str, dtype: torch.dtype = torch.float32, **rest: Any) -> Model:
    def build() -> Case:
        case = benchmarks.with_adapters(benchmarks.llama(layers=2, width=128, vocab=128_256, batch=2, length=256))
        case.model.to(dtype)
        return benchmarks.labelled(case)

    return Model(
        f"Llama shape with LoRA on all projections, {about}, 2 layers of 128, vocabulary 128,256, 2 x 256 tokens,"
        " labels given to the model as in the Trainer",
        build, aim="0.20", layers=lambda model: [model.inner.model.layers], head=_labelled, apart=True, **rest,
    )  # fmt: skip


MODELS = {
    "wide-head": Model(
        "embedding, MLP of 128, 50,304 logits of 2,048 tokens, cross-entropy", benchmarks.wide_head, head=_wide,
        aim="0.17",
    ),
    "gpt2-trainer": Model(
        "GPT-2 shape, 4 layers of 128, vocabulary 50,304, 8 x 256 tokens, labels given to the model as in the Trainer",
        lambda: benchmarks.labelled(benchmarks.gpt2(layers=4, width=128, vocab=50_304, batch=8, length=256)),
        layers=lambda model: [model.inner.transformer.h],
        head=_labelled, apart=True,
        aim="0.20",
    ),
    "gpt2": Model(
        "GPT-2 shape, 4 layers of 384, vocabulary 8,192, 8 x 256 tokens",
        lambda: benchmarks.gpt2(layers=4, width=384, vocab=8192, batch=8, length=256),
        layers=lambda model: [model.transformer.h], head=_language,
        aim="0.30",
    ),
    "llama": Model(
        "Llama shape, 4 layers of 384, vocabulary 8,192, 8 x 256 tokens", lambda: benchmarks.llama(length=256),
        layers=lambda model: [model.model.layers], head=_language,
        aim="0.30",
    ),
    "lora-bf16": _lora("bfloat16", torch.bfloat16),
    "lora-autocast": _lora("float32 in autocast", autocast=True),
    "unet": Model(
        "U-Net with GroupNorm and SiLU, 3 levels, 8 images of 64", lambda: unet(batch=8, width=32, size=64),
        layers=_unet,
        aim="0.35",
    ),
    "unet-128": Model(
        "the same with 2 levels, 8 images of 128", lambda: unet(batch=8, width=32, size=128, levels=2), layers=_unet,
        aim="0.35",
    ),
    "diffusion-unet": Model(
        "diffusion U-Net with attention, 8 images of 64",
        lambda: generative.diffusion_unet(batch=8, width=32, size=64), layers=_unet,
        aim="0.35",
    ),
    "volumes": Model(
        "3-d U-Net with InstanceNorm and LeakyReLU, 2 volumes of 16 x 64 x 64",
        lambda: volumes.dynamic_unet(width=16, shape=(16, 64, 64)), layers=_unet,
        aim="0.35",
    ),
    "resnet-18": Model("ResNet-18, 32 images of 64", lambda: benchmarks.resnet_18(32), layers=_resnet, aim="0.35"),
    "resnet-50": Model("ResNet-50, 32 images of 64", lambda: benchmarks.resnet_50(32), layers=_resnet, aim="0.35"),
    "preact-29": Model(
        "pre-activation ResNet-29 of bottlenecks, 16 images of 32", lambda: benchmarks.preact(29, 16, bottleneck=True),
        layers=lambda model: [model.blocks],
        aim="0.15",
    ),
    "vit": Model(
        "ViT, 128 images of 64", lambda: benchmarks.vit(128), layers=lambda model: [model.vit.layers], aim="0.20"
    ),
    "bert": Model(
        "BERT shape, 16 x 128 tokens", lambda: benchmarks.bert(16), layers=lambda model: [model.bert.encoder.layer],
        head=_bert,
        aim="0.20",
    ),
}  # fmt: skip
