"""What an audit finds, as frozen records."""

from __future__ import annotations

from dataclasses import dataclass

from fxapprox.errors import OptionError
from fxapprox.ir.source import GraphBreak
from fxapprox.measure.gradient_error import GradientError
from fxapprox.planning.bound import counted


@dataclass(frozen=True, slots=True)
class ParameterError:
    """The error of one parameter's gradient.

    Attributes:
        name: as ``named_parameters`` has it.
        elements: how many the parameter has.
        norm: of its exact gradient, over all batches: sqrt(mean ||g||^2); 0 for one without a gradient.
        error: see ``GradientError``.
    """

    name: str
    elements: int
    norm: float
    error: GradientError


@dataclass(frozen=True, slots=True)
class Cause:
    """What one stored value does to the gradients.

    Attributes:
        value: node name in the joint graph.
        module, source: path of the module that made it, and the user's source line.
        storage: how it is stored.
        bits: an element of it.
        error: the relative error of all gradients with this value decoded from its code and all others exact.
        share: of the sum of all values' squared errors, which predicts the square of the whole plan's.
    """

    value: str
    module: str
    source: str
    storage: str
    bits: int
    error: float
    share: float


@dataclass(frozen=True, slots=True)
class BitsAudit:
    """One number of bits.

    Attributes:
        bits: as it was asked for.
        total: the error of all parameters together.
        parameters: the error of each, in the model's order.
        causes: the stored values, worst first; measured on the first batch, without checkpoints.
        saved_bytes: what is stored for backward; for parts of a batch, that of the whole batch.
    """

    bits: int | str | None
    total: GradientError
    parameters: tuple[ParameterError, ...]
    causes: tuple[Cause, ...]
    saved_bytes: int

    @property
    def label(self) -> str:
        """ "8 bits", "exact", "auto"."""
        return "exact" if self.bits is None else f"{self.bits} bits" if isinstance(self.bits, int) else self.bits

    @property
    def worst(self) -> ParameterError | None:
        """The parameter that is off the most, of those whose gradient is more than rounding; None if there is none."""
        known = [self.parameters[i] for i in counted([parameter.norm for parameter in self.parameters])]
        return max(known, key=lambda parameter: parameter.error.error or 0.0, default=None)


@dataclass(frozen=True)
class AuditData:
    """The gradient errors of a model.

    Attributes:
        settings: one for each number of bits, in the order that was asked for.
        baseline_bytes: what plain torch.compile would store for backward.
        exact_bytes: what exact mode stores, which errors are measured against.
        floor: relative distance of exact mode's gradients from those of the model run as it is, without torch.compile:
            errors near it are rounding of float arithmetic, and decisions on values near zero that rounding turns.
            None where the model draws random numbers, which differ.
        batches: how many were measured.
        parts: how many parts of the batch bias and noise were told apart by; 0 where the batches themselves served.
        notes: what limits these numbers, in words.
        breaks: the model's graph breaks; what crosses one is stored as it is.
    """

    settings: tuple[BitsAudit, ...]
    baseline_bytes: int
    exact_bytes: int
    floor: float | None
    batches: int
    parts: int
    notes: tuple[str, ...] = ()
    breaks: tuple[GraphBreak, ...] = ()

    def at(self, bits: int | str | None) -> BitsAudit:
        """The errors in this number of bits.

        Raises:
            OptionError: it was not measured.
        """
        for setting in self.settings:
            if setting.bits == bits:
                return setting
        raise OptionError(f"bits={bits!r} was not measured: {', '.join(s.label for s in self.settings)} were")
