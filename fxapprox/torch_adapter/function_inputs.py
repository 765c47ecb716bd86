# pyright: reportPrivateImportUsage=false
"""Functions that a backward graph calls: Inductor must not write over what they are given.

AOTAutograd says by place which inputs of the backward graph nobody else holds, so that a result may take their memory.
Inductor asks so of the inputs of every function that the graph calls as well (torch 2.13): it writes over those that
happen to stand at such a place, although whoever calls still reads them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch


@contextlib.contextmanager
def function_inputs_kept() -> Iterator[None]:
    """Has Inductor give none of their inputs' memory away in the functions of what is compiled inside."""
    from torch._inductor.graph import GraphLowering

    make = GraphLowering.make_subgraph

    def kept(*args: Any, **kwargs: Any) -> Any:
        function = make(*args, **kwargs)
        function.bw_donated_idxs = None
        return function

    with patch.object(GraphLowering, "make_subgraph", kept):
        yield
