"""The errors a user can meet. Each says what was wrong, where, and what to do."""

from __future__ import annotations


def shown(value: object, limit: int = 120) -> str:
    """A value as messages show it: its repr in one line, cut where it is long; this fails for no value."""
    try:
        text = repr(value)
    except Exception:  # a repr of the user's own, or a whole number with too many digits for one
        return f"a value of type {type(value).__name__}"
    text = text if text.isprintable() else " ".join(text.split())
    return text if len(text) <= limit else f"{text[: limit - 20]}...{text[-10:]}"


class FxApproxError(Exception):
    """Base of every error that fxapprox raises on purpose."""


class OptionError(FxApproxError, ValueError):
    """An option has a name or a value that fxapprox does not know."""


class TargetError(FxApproxError):
    """A command-line TARGET could not be loaded, or its factory returned something else than asked for."""


class ModelError(FxApproxError):
    """The model raised while it was traced; the message has its error and the user's line."""


class UnsupportedGraph(FxApproxError):
    """A joint graph that cannot be rewritten safely.

    Attributes:
        step: the pass that gave up.
        node: name of the node that it gave up on, or None.
        source: the user's source line of that node, or None.
        values: names of the values that would have to be exact for the graph to be rewritten; none if that will not do.
    """

    def __init__(
        self,
        step: str,
        why: str,
        *,
        node: str | None = None,
        source: str | None = None,
        values: tuple[str, ...] = (),
    ) -> None:
        self.step, self.node, self.source, self.values = step, node, source, values
        at = f" at node {node!r}" if node else ""
        line = f" ({source})" if source else ""
        super().__init__(f"{step}{at}{line}: {why}")


class InvalidPlan(FxApproxError):
    """A plan that does not fit the graph it is applied to."""


class DoesNotFit(FxApproxError):
    """Not even one example fits into the memory.

    Attributes:
        needed: bytes that one example needs.
    """

    def __init__(self, message: str, needed: int) -> None:
        self.needed = needed
        super().__init__(message)
