"""The pre-activation ResNet for 32x32 images (He et al. 2016, "Identity Mappings in Deep Residual Networks").

Chakrabarti & Moseley (2019) train this family with approximate activations. Three stages (unless told otherwise) work
at resolutions 32, 16 and 8 with 1, 2 and 4 times `width` channels; a residual block is a chain of BN-ReLU-conv layers
whose result is added to the block's input. Where the shape changes, a strided 1x1 projection of the first BN-ReLU's
output is added instead. ResNet-20 and -110 have basic blocks, ResNet-164 has bottleneck blocks.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

EXPANSION = {"basic": 1, "bottleneck": 4}
LAYERS_PER_BLOCK = {"basic": 2, "bottleneck": 3}


class PreActBlock(nn.Module):
    """A residual block: (N, in_channels, H, W) to (N, out_channels, H / stride, W / stride), float32.

    Args:
        in_channels: channels of the input.
        inner: channels between the block's convolutions.
        stride: stride of the block's first convolution and of its projection.
        block: "basic" (two 3x3 convolutions) or "bottleneck" (1x1, 3x3, and 1x1 to 4 times `inner` channels).
    """

    def __init__(self, in_channels: int, inner: int, stride: int, block: str) -> None:
        super().__init__()
        out_channels = inner * EXPANSION[block]
        kernels = (3, 3) if block == "basic" else (1, 3, 1)
        channels = [in_channels] + [inner] * (len(kernels) - 1) + [out_channels]
        strides = [stride] + [1] * (len(kernels) - 1)
        layers = list(zip(channels[:-1], channels[1:], kernels, strides, strict=True))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channel) for channel, *_ in layers)
        self.convs = nn.ModuleList(_conv(*layer) for layer in layers)
        changes_shape = stride != 1 or in_channels != out_channels
        self.projection = _conv(in_channels, out_channels, 1, stride) if changes_shape else None

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norms[0](x))
        shortcut = x if self.projection is None else self.projection(h)
        h = self.convs[0](h)
        for norm, conv in zip(self.norms[1:], self.convs[1:], strict=True):
            h = conv(F.relu(norm(h)))
        return h + shortcut


class PreActResNet(nn.Module):
    """Images (N, 3, H, W), float32, to class scores (N, num_classes). Build one with `preact_resnet`."""

    def __init__(self, stages: int, blocks_per_stage: int, width: int, num_classes: int, block: str) -> None:
        super().__init__()
        self.stem = _conv(3, width, 3, 1)
        blocks, channels = [], width
        for stage in range(stages):
            for index in range(blocks_per_stage):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(PreActBlock(channels, width * 2**stage, stride, block))
                channels = width * 2**stage * EXPANSION[block]
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.classifier = nn.Linear(channels, num_classes)
        self.apply(_init)

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(h.mean(dim=(2, 3)))


def preact_resnet(
    depth: int,
    *,
    width: int = 16,
    num_classes: int = 10,
    block: Literal["basic", "bottleneck"] = "basic",
    stages: int = 3,
) -> PreActResNet:
    """A pre-activation ResNet with random weights, drawn from torch's global generator.

    Args:
        depth: number of layers with weights, projections aside; with three stages 6n+2 for basic blocks (8, 14, 20,
            ..., 110), 9n+2 for bottleneck blocks (11, 20, 29, ..., 164).
        width: channels of the first stage.
        num_classes: number of class scores.
        block: "basic" or "bottleneck".
        stages: how many; each after the first halves the resolution.

    Raises:
        ValueError: unknown block, or a depth it cannot have.
    """
    if block not in LAYERS_PER_BLOCK:
        raise ValueError(f"block must be 'basic' or 'bottleneck', not {block!r}")
    period = stages * LAYERS_PER_BLOCK[block]
    blocks_per_stage, rest = divmod(depth - 2, period)
    if rest or blocks_per_stage < 1:
        nearest = max(1, round((depth - 2) / period)) * period + 2
        rule = f"{period}n+2 with n >= 1 for {block} blocks"
        raise ValueError(f"depth must be {rule}, not {depth}; the nearest is {nearest}")
    return PreActResNet(stages, blocks_per_stage, width, num_classes, block)


def _conv(in_channels: int, out_channels: int, kernel: int, stride: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, padding=kernel // 2, bias=False)


def _init(module: nn.Module) -> None:
    """He initialization: weights of variance 2 / fan_in in convolutions, 1 / fan_in in the classifier."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
        nn.init.zeros_(module.bias)
