"""What one graph of a model hands on to the next, so that memory which two of them save is counted once.

Torch.compile splits a model at graph breaks, and compiles each graph when it runs for the first time, with the tensors
that the graphs before it have made. Such an input is an activation like any other: backward of the graph that reads it
keeps it alive, unless an earlier graph keeps it anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import fx

from fxapprox import torch_adapter as adapter
from fxapprox.memory.held import held_by, positions_in


@dataclass(frozen=True)
class Handed:
    """Positions, in a Dynamo graph, of the inputs and outputs that are activations.

    Attributes:
        counted: inputs that are no parameters, buffers or inputs of the user's.
        made: those of them that nobody but autograd keeps alive, not being attributes of the model either.
        held: those of ``counted`` that an earlier graph saves.
        held_by_plain: those of them that an earlier graph would save under plain torch.compile.
        held_by_eager: those of them that operators save which run eagerly between two graphs: saving them costs
            nothing, a code would be stored beside them. They count as held by a graph that saves them all the same.
        on: whether the model goes on behind the graph: its outputs are inputs of the next one.
    """

    counted: frozenset[int] = frozenset()
    made: frozenset[int] = frozenset()
    held: frozenset[int] = frozenset()
    held_by_plain: frozenset[int] = frozenset()
    held_by_eager: frozenset[int] = frozenset()
    on: bool = False


NOTHING = Handed()


@dataclass
class Between:
    """Which memory the graphs of one backend save, ours and plain torch.compile's; by weak references."""

    held: set[Any] = field(default_factory=set)
    held_by_plain: set[Any] = field(default_factory=set)

    def link(self, gm: fx.GraphModule, inputs: Sequence[Any]) -> Link:
        """For a Dynamo graph that is being compiled with these inputs."""
        made = dict(adapter.counted_inputs(gm, inputs))
        memory = {at: adapter.storage_key(inputs[at]) for at in made}
        eager = _held_by_eager([inputs[at] for at in made])
        handed = Handed(
            frozenset(made),
            frozenset(at for at, activation in made.items() if activation),
            frozenset(at for at, key in memory.items() if key in self.held),
            frozenset(at for at, key in memory.items() if key in self.held_by_plain),
            frozenset(at for at, key in memory.items() if key in eager),
            adapter.ends_in_a_break(gm),
        )
        return Link(self, handed, memory)

    def note(self, ours: Iterable[Any], plains: Iterable[Any]) -> None:
        """Adds memory that a graph saves; forgets what is gone."""
        for keys, noted in ((ours, self.held), (plains, self.held_by_plain)):
            noted -= {key for key in noted if key.expired()}
            noted |= set(keys)


@dataclass
class Link:
    """One graph of several.

    Attributes:
        handed: what it gets and passes on.
        memory: that of the inputs that are counted, by position.
        outputs: positions of the outputs that it saves, ours and plain torch.compile's; known once it is split.
    """

    between: Between
    handed: Handed
    memory: Mapping[int, Any]
    outputs: tuple[frozenset[int], frozenset[int]] = (frozenset(), frozenset())

    def note(
        self, ours: tuple[fx.Graph, Iterable[fx.Node]], plains: tuple[fx.Graph, Iterable[fx.Node]], *,
        num_fwd_outputs: int, counted: Collection[str],
    ) -> None:  # fmt: skip
        """Takes from a graph that has been split what it saves of what others have as well.

        Args:
            ours, plains: a graph and its values that are saved, by us and by plain torch.compile.
            counted: names of the inputs that count where they are saved.
        """
        own, other = (positions_in(held_by(saved, counted), graph, num_fwd_outputs) for graph, saved in (ours, plains))
        self.outputs = own[1], other[1]
        self.between.note(*([self.memory[at] for at in inputs if at in self.memory] for inputs, _ in (own, other)))

    def watched(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """The function of the graph; where the model goes on it notes, when first called, which outputs are saved."""
        if not self.handed.on:
            return run

        def watched(*args: Any) -> Any:
            outputs = run(*args)
            if self.outputs != (frozenset(), frozenset()):
                ours, plains = ([outputs[at] for at in positions if at < len(outputs)] for positions in self.outputs)
                self.between.note(map(adapter.storage_key, ours), map(adapter.storage_key, plains))
                self.outputs = frozenset(), frozenset()
            return outputs

        return watched


def _held_by_eager(inputs: Sequence[Any]) -> set[Any]:
    """The memory that operators which ran eagerly hold of what these inputs were made of."""
    try:
        return {adapter.storage_key(tensor) for tensor in adapter.saved_tensors(inputs, adapter.is_eager)}
    except RuntimeError:  # backward has run through some of it: whatever is still held there, is not known
        return set()
