"""All models of the zoo by name: what `python -m tools.zoo` runs, and a few of them the tests.

A builder takes the batch as a keyword; weights do not depend on it. Architectures of the transformers package that have
one here as well are called "hf-NAME".
"""

from __future__ import annotations

from collections.abc import Callable

from tools.zoo.models import (
    MODELS,
    Case,
    convnets,
    densities,
    generative,
    graphs,
    hugging_face,
    image_generators,
    language,
    memories,
    metrics,
    mobile,
    molecules,
    sequences,
    vision_transformers,
    volumes,
)

FAMILIES = (
    convnets, mobile, vision_transformers, sequences, generative, graphs, volumes, image_generators, molecules,
    memories, densities, metrics, language,
)  # fmt: skip
OWN: dict[str, Callable[..., Case]] = {
    **MODELS,
    **{builder.__name__: builder for family in FAMILIES for builder in family.BUILDERS},
}
ZOO: dict[str, Callable[..., Case]] = {
    **OWN,
    **{f"hf-{name}" if name in OWN else name: builder for name, builder in hugging_face.MODELS.items()},
}
