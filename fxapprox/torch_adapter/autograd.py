"""What autograd's own graph holds, read off its nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor


def saved_tensors(outputs: object, of: Callable[[Any], bool] = lambda node: True) -> Iterator[Tensor]:
    """The tensors that the autograd graph of `outputs` holds, in no order and with repetitions.

    Args:
        outputs: a tensor, or lists, tuples and dicts of tensors.
        of: which nodes of the graph are asked.

    Raises:
        RuntimeError: backward has run, and PyTorch has freed them.
    """
    stack: list[Any] = [t.grad_fn for t in _tensors(outputs)]
    seen: set[Any] = {None}
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if of(node):
            yield from _held_by(node)
        stack.extend(following for following, _ in node.next_functions)


def is_eager(node: Any) -> bool:
    """Whether a node of autograd's graph is not the backward of a graph that AOTAutograd compiled."""
    return not node.name().startswith("CompiledFunction")


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors in `value`, through lists, tuples and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _held_by(node: Any) -> Iterator[Tensor]:
    """The tensors one autograd node holds.

    Built-in nodes offer each saved tensor as `_raw_saved_<name>`, nodes of Python functions offer all of them
    as `_raw_saved_tensors`; raw is what is really held, before any unpack hook. Python functions may keep
    more tensors in attributes of their own: torch.compile's node keeps those that it need not check for
    in-place changes in `_tensors_no_vc_check`.
    """
    for name in dir(node):
        if name.startswith("_raw_saved_"):
            raw = getattr(node, name)
            held = [saved.data for saved in (raw if isinstance(raw, tuple) else (raw,))]
            if any(data is None for data in held):
                getattr(node, name.removeprefix("_raw"))  # raises if it was freed, not merely absent
            yield from _tensors(held)
    yield from _tensors(getattr(node, "__dict__", None))
