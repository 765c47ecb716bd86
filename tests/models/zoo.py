"""All models of the zoo by name: what `python -m tools.zoo` runs, and a few of them the tests.

A builder takes the batch as a keyword; weights do not depend on it.
"""

from __future__ import annotations

from collections.abc import Callable

from tests.models import MODELS, Case, convnets, generative, graphs, mobile, sequences, vision_transformers

FAMILIES = (convnets, mobile, vision_transformers, sequences, generative, graphs)
ZOO: dict[str, Callable[..., Case]] = {
    **MODELS,
    **{builder.__name__: builder for family in FAMILIES for builder in family.BUILDERS},
}
