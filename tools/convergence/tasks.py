"""The table of tasks: each some minutes on one core, and two for a GPU."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch.nn import functional as F

from fxapprox.demo.model import preact_resnet
from tools.convergence import data, networks
from tools.convergence.task import Task, sgd
from tools.zoo.models import UNet

CONVOLUTIONS = frozenset({"relu", "blocks"})
LANGUAGE = frozenset({"attention", "blocks"})
MAIN_ARMS = ("plain", "exact", "4-bits", "2-bits", "naive", "naive-2", "nudged")

DIGITS = Task(
    "digits, pre-activation conv-BN-ReLU net", data.digits, lambda _: networks.DigitsNet(), 64, 600, 0.05,
    has=CONVOLUTIONS, optimizer=sgd,
)  # fmt: skip
GPT = Task(
    "bytes of the standard library, GPT with dropout", data.sources, lambda _: networks.Scores(2, 96, 3, 64), 16, 1500,
    3e-3, has=LANGUAGE,
)  # fmt: skip
RESNET_20 = Task(
    "CIFAR-10, pre-activation ResNet-20, 15 epochs", data.cifar, lambda _: preact_resnet(20), 128, 15 * 391, 0.1,
    has=CONVOLUTIONS, optimizer=sgd, prepare=data.augmented, seeds=3, arms=MAIN_ARMS,
)  # fmt: skip

TASKS = {
    "digits": DIGITS,
    "cifar": Task(
        "CIFAR-10 at 16 x 16, pre-activation ResNet-8", data.small_cifar, lambda _: preact_resnet(8), 64, 1500, 0.1,
        has=CONVOLUTIONS, optimizer=sgd, prepare=data.augmented,
    ),
    "gpt": GPT,
    "unet": Task(
        "CIFAR-10 at 16 x 16 without noise, U-Net with GroupNorm and SiLU", data.clean_patches,
        lambda _: UNet(3, 8, 3), 32, 1500, 3e-3, loss=F.mse_loss, prepare=data.with_noise,
    ),
    "mlp": Task(
        "CIFAR-10 at 8 x 8, LayerNorm-ReLU MLP", data.flat_patches, lambda _: networks.normed_mlp(192), 128, 1000, 1e-3,
        has=frozenset({"relu"}),
    ),
    "lora": Task(
        "the language's documentation, adapters in the GPT", data.documentation, partial(networks.adapted, GPT),
        16, 600, 5e-3, has=LANGUAGE,
    ),
    "deep-digits": replace(
        DIGITS, about="digits, 110 layers", network=lambda _: networks.DigitsNet(width=4, blocks=54), steps=300,
        arms=("plain", "4-bits", "2-bits", "naive", "naive-2"),  # what is decided again adds up over layers
    ),
    "long-digits": replace(DIGITS, about="digits, ten times as long", steps=10 * DIGITS.steps, seeds=3),
    "resnet-20": RESNET_20,
    "resnet-18": replace(
        RESNET_20, about="CIFAR-10, pre-activation ResNet-18", steps=64_000, seeds=10, large=True,
        network=lambda _: preact_resnet(18, width=64, stages=4),
    ),
    "gpt-124m": replace(
        GPT, about="bytes of the standard library, GPT with 12 layers of 768", large=True, batch=32, steps=5000,
        rate=6e-4, data=partial(data.sources, length=1024, valid=100),
        network=lambda _: networks.Scores(12, 768, 12, 1024),
    ),
}  # fmt: skip
