# pyright: reportPrivateImportUsage=false
"""Scatters of complex values: Inductor must not do them in place.

It generates no code for complex numbers, and asks ATen for each operator, views included. Of a view that ATen made it
does not know whose memory it shows. So a part of a complex value that is written in place, as in the gradient of
``irfft``, is not ordered against what reads the value: where it comes too late, the gradient is wrong (torch 2.13).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from unittest.mock import patch

import torch
from torch import fx


@contextlib.contextmanager
def complex_scatters_apart() -> Iterator[None]:
    """Has Inductor make a new value of each scatter into a complex one, in what is compiled inside."""
    from torch._inductor.fx_passes import reinplace

    scatter = reinplace._generalized_scatter
    known = reinplace.inplaceable_ops[scatter]
    in_place = dataclasses.replace(known, extra_check=_of_reals(known.extra_check))
    with (
        patch.dict(reinplace.inplaceable_ops, {scatter: in_place}),
        patch.object(reinplace, "scatter_always_uses_mutation", _of_reals(reinplace.scatter_always_uses_mutation)),
    ):
        yield


def _of_reals(check: Callable[[fx.Node], bool]) -> Callable[[fx.Node], bool]:
    def checked(node: fx.Node) -> bool:
        value = node.meta.get("val")
        return not (isinstance(value, torch.Tensor) and value.is_complex()) and check(node)

    return checked
