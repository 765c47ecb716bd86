"""Architectures of the transformers package, built from their configurations with random weights, two layers each.

A table is data: the class, its settings, the kind of inputs. `MODELS` has a builder for each row; nothing is imported
or built before one is called.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from tools.zoo.models import Case
from tools.zoo.models.hugging_face import decoders, sound, text, vision
from tools.zoo.models.hugging_face.architecture import Architecture, build

ARCHITECTURES: dict[str, Architecture] = {
    **text.ENCODERS, **text.TRANSLATORS, **decoders.ATTENTION, **decoders.EXPERTS, **decoders.SCANS,
    **vision.CONVOLUTIONS, **vision.TRANSFORMERS, **vision.DENSE, **vision.WITH_TEXTS, **sound.SOUNDS, **sound.SERIES,
}  # fmt: skip

MODELS: dict[str, Callable[..., Case]] = {
    name: partial(build, name, architecture) for name, architecture in ARCHITECTURES.items()
}
