"""The options: one frozen record, the same names everywhere, validated before anything is traced."""

from __future__ import annotations

import difflib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from numbers import Integral, Rational, Real
from typing import Any, Literal, get_args

from torch import nn

from fxapprox.amounts import parse_bytes
from fxapprox.codecs import Codec
from fxapprox.errors import FxApproxError, OptionError, shown
from fxapprox.files.json_file import loads
from fxapprox.files.plan_file import SavedPlan
from fxapprox.files.sensitivity import Sensitivities
from fxapprox.ir.records import Activation

Rounding = Literal["nearest", "stochastic"]
Lowering = Literal["inductor", "eager"]
Count = int | float | Literal["sqrt"]  # of segments, or a share of what they can take off the peak
BITS = (8, 4, 2)
DEFAULT_BITS = 8
ENVIRONMENT = "FXAPPROX_OPTIONS"
MOST_SEGMENTS = 10**6
PROVISIONAL_BITS = 4  # with which "auto" decides what to store, before it chooses bits for it


@dataclass(frozen=True, slots=True)
class Options:
    """How activations are stored for backward.

    Attributes:
        bits: bits per stored element, 8, 4 or 2; None is exact mode: lossless savings only.
            Values that need more get more (see ``Class`` in ir/records.py).
            Or a mapping from patterns of module paths to such numbers, as in ``{"layers.*.attn": 8, "*": 4}``: a
            pattern covers the modules whose path it matches, and all inside them; where several do, the one with
            most literal characters wins; what none covers gets 8.
            Or "auto": 8, 4, 3 or 2 for each value, where they lower the gradient error most.
        average_bits: with ``bits="auto"``: bits per stored element on the average, 2 to 32; above 8, what gains the
            most by it is exact.
        sensitivities: with ``bits="auto"``: what :func:`calibrate` measured, or the path of its file; None: bits are
            chosen by the graph alone.
        plan: a plan that was saved (``report.plan.save(path)``), or the path of its file: what it stores is stored,
            in its codecs; bits, rounding and policy are not asked.
        checkpoint: compute segments of forward again in backward, from values at their boundaries (Chen et al. 2016);
            their activations, in ``bits`` each, are there only while a segment's backward runs. "sqrt": as many
            segments as give the lowest peak; a fraction between 0 and 1: as few operators run again as take this share
            of it off the peak; a whole number: this many segments. None: none.
        checkpoint_bits: bits of the values at the boundaries, and of what goes into regions that the model has in
            ``torch.utils.checkpoint``, 8 or 4; forward's decisions and statistics inside are stored as well then, so
            that they are not taken again. None: boundaries are exact, and the gradients those without checkpoints.
        memory_budget: the peak of a training step that is allowed: a fraction of plain torch.compile's peak of
            activations (up to 1), or an amount such as "2GiB". Bits and checkpoints are chosen for the least time and
            error that fit, and are not to be given; ``bits=None`` keeps the choice lossless. Each graph of a model
            is held to it by itself.
        rounding: "nearest" (least error per step), or "stochastic" (unbiased: the group codec's error
            averages out over steps; ActNN, Chen et al. 2021, section 3).
        min_bytes: leave tensors smaller than this many bytes as they are.
        policy: ``Activation -> Codec | None``, the last word on each stored value; None keeps our choice.
        lowering: "inductor", or "eager" to run the rewritten graphs as they are.
        strict: raise where a graph cannot be rewritten, instead of warning and storing it exactly.

    Raises:
        OptionError: a value is not one of those above.
    """

    bits: int | Literal["auto"] | Mapping[str, int | None] | None = 8
    average_bits: float = 4.0
    sensitivities: Sensitivities | None = None
    plan: SavedPlan | str | os.PathLike[str] | None = None
    checkpoint: Count | None = None
    checkpoint_bits: int | None = None
    memory_budget: float | str | None = None
    rounding: Rounding = "nearest"
    min_bytes: int = 4096
    policy: Callable[[Activation], Codec | None] | None = None
    lowering: Lowering = "inductor"
    strict: bool = False

    def __post_init__(self) -> None:
        for name in ("bits", "average_bits", "checkpoint", "checkpoint_bits", "memory_budget", "rounding", "min_bytes",
                     "lowering"):  # fmt: skip
            object.__setattr__(self, name, _plain(getattr(self, name)))
        if isinstance(self.bits, Mapping):
            object.__setattr__(self, "bits", _patterns(self.bits))  # the caller's may change
        else:
            _require(_is_bits(self.bits) or _is(self.bits, "auto"), "bits", self.bits,
                     '8, 4, 2, None for exact mode, "auto", or a mapping from patterns')  # fmt: skip
        _require(type(self.average_bits) in (int, float) and 2 <= self.average_bits <= 32, "average_bits",
                 self.average_bits, "a number from 2 to 32")  # fmt: skip
        if isinstance(self.sensitivities, (str, os.PathLike)):
            object.__setattr__(self, "sensitivities", Sensitivities.load(self.sensitivities))
        _require(self.sensitivities is None or isinstance(self.sensitivities, Sensitivities), "sensitivities",
                 self.sensitivities, "what fxapprox.calibrate returned, or the path of its file")  # fmt: skip
        if isinstance(self.plan, (str, os.PathLike)):
            object.__setattr__(self, "plan", SavedPlan.load(self.plan))
        _require(self.plan is None or isinstance(self.plan, SavedPlan), "plan", self.plan,
                 "a SavedPlan or the path of its file")  # fmt: skip
        _require(_is_count(self.checkpoint), "checkpoint", self.checkpoint,
                 'None, "sqrt", a fraction between 0 and 1, or a number of segments')  # fmt: skip
        _require(_is(self.checkpoint_bits, None, 8, 4), "checkpoint_bits", self.checkpoint_bits, "8, 4, or None: exact")
        if self.memory_budget is not None:
            self._check_budget()
        _require(_is(self.rounding, *get_args(Rounding)), "rounding", self.rounding, '"nearest" or "stochastic"')
        _require(type(self.min_bytes) is int and self.min_bytes >= 0, "min_bytes", self.min_bytes,
                 "a number of bytes, 0 or more")  # fmt: skip
        _require(self.policy is None or callable(self.policy), "policy", self.policy,
                 "a function Activation -> Codec | None")  # fmt: skip
        _require(_is(self.lowering, *get_args(Lowering)), "lowering", self.lowering, '"inductor" or "eager"')
        _require(type(self.strict) is bool, "strict", self.strict, "True or False")

    def _check_budget(self) -> None:
        budget = self.memory_budget
        if isinstance(budget, str):
            parse_bytes(budget, "memory_budget", more=", or a fraction as a number, such as 0.3")
        else:
            _require(type(budget) in (int, float) and 0 < budget <= 1, "memory_budget", budget,  # type: ignore[operator]
                     'a fraction of plain torch.compile\'s peak, up to 1, or an amount such as "2GiB"')  # fmt: skip
        given = [name for name, own in (("bits", self.bits not in (None, 8)), ("plan", self.plan is not None),
                                        ("checkpoint", self.checkpoint is not None)) if own]  # fmt: skip
        if given:
            raise OptionError(f"memory_budget chooses bits and checkpoints by itself: leave out {given[0]}="
                              " (bits=None, for a lossless choice, may stay)")  # fmt: skip

    @classmethod
    def parse(cls, given: Mapping[str, Any]) -> Options:
        """Options from keyword arguments.

        Raises:
            OptionError: a name is unknown (the message suggests the nearest), or a value is invalid.
        """
        require_names(given)
        unknown = [name for name in given if name not in NAMES]
        if unknown:
            raise OptionError(unknown_option(unknown[0], NAMES))
        return cls(**given)

    def warn_of_idle(self) -> None:
        """Warns of options that have no effect, because what they go with is missing."""
        own = {field.name for field in fields(self) if getattr(self, field.name) != field.default}
        auto = self.bits == "auto" or self.memory_budget is not None
        planned = "what plan= holds is stored as it is"
        idle = {
            "average_bits": self.bits != "auto" and 'give it with bits="auto"',
            "sensitivities": not auto and 'give them with bits="auto" or memory_budget=',
            "rounding": self.bits is None and "bits=None stores nothing in a code with loss",
            "policy": self.bits is None and "bits=None stores nothing in a code with loss",
        }
        if self.plan is not None:
            idle = dict.fromkeys(("bits", "average_bits", "sensitivities", "rounding", "policy"), planned)
        for name, why in idle.items():
            if why and name in own:
                warnings.warn(f"{name}= has no effect: {why}", stacklevel=3)

    def bits_of(self, module: str) -> int | None:
        """Bits for values made in the module with this path; None: exactly."""
        if self.bits == "auto":
            return PROVISIONAL_BITS
        if not isinstance(self.bits, Mapping):
            return self.bits
        covering = [pattern for pattern in self.bits if covers(pattern, module)]
        return self.bits[max(covering, key=_literals)] if covering else DEFAULT_BITS

    def check_patterns(self, model: object) -> None:
        """Checks that every pattern in ``bits`` covers some module of a model; a function has none to check.

        Raises:
            OptionError: a pattern covers none; the message names close ones.
        """
        if not isinstance(self.bits, Mapping) or not isinstance(model, nn.Module):
            return
        paths = [name for name, _ in model.named_modules()]
        for pattern in self.bits:
            if not any(covers(pattern, path) for path in paths):
                near = _deeper(pattern, paths) or difflib.get_close_matches(pattern, paths, n=3, cutoff=0.4)
                hint = f"close ones are {', '.join(map(repr, near))}" if near else "named_modules() lists them"
                raise OptionError(f"bits: no module of the model matches {pattern!r}; {hint}")


NAMES = tuple(field.name for field in fields(Options))


def from_environment(text: str | None = None) -> Options:
    """The options in the variable FXAPPROX_OPTIONS, a JSON object, as in '{"bits": 4}'; the defaults if it is empty.

    For those who have torch.compile called for them and can name a backend, but give it no options.

    Args:
        text: the variable's value; None: what it is now.

    Raises:
        OptionError: it is no JSON object, a name in it is unknown, or a value invalid.
    """
    text = (os.environ.get(ENVIRONMENT, "") if text is None else text).strip() or "{}"
    try:
        given = loads(text)
    except ValueError as error:
        raise OptionError(f"{ENVIRONMENT}={shown(text)}: {error}; expected {_JSON}") from None
    _require(isinstance(given, dict), ENVIRONMENT, text, _JSON)
    try:
        return Options.parse(given)
    except FxApproxError as error:
        raise type(error)(f"in {ENVIRONMENT}: {error}") from None


_JSON = """a JSON object of options, such as '{"bits": 4}'"""


def require_names(given: object) -> None:
    """Checks that this is a mapping from names of options.

    Raises:
        OptionError: it is something else.
    """
    _require(isinstance(given, Mapping) and all(isinstance(name, str) for name in given), "options", given,
             "a mapping from names of options to their values")  # fmt: skip


def unknown_option(name: str, known: tuple[str, ...]) -> str:
    """The message for an option nobody knows, with the nearest name that exists."""
    near = difflib.get_close_matches(name[:100], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"options are {', '.join(NAMES)}"
    return f"unknown option {shown(name)}; {hint}"


def _deeper(pattern: str, paths: Sequence[str]) -> list[str]:
    """The pattern as it would match inside of modules: "encoder.layer.*" for "layer.*"; three at most."""
    cuts = ((path.split(".")[:i], path.split(".")[i:]) for path in paths for i in range(1, path.count(".") + 1))
    found = (".".join([*outer, pattern]) for outer, inner in cuts if covers(pattern, ".".join(inner)))
    return list(dict.fromkeys(found))[:3]


def covers(pattern: str, module: str) -> bool:
    """Whether the pattern matches this module path or that of a module around it; "*" also matches the top, ""."""
    names = module.split(".")
    return any(fnmatchcase(".".join(names[:end]), pattern) for end in range(1, len(names) + 1))


def _literals(pattern: str) -> int:
    return sum(letter not in "*?[]" for letter in pattern)


def _is_bits(value: object) -> bool:
    return value is None or (type(value) is int and value in BITS)


def _is_count(value: object) -> bool:
    if type(value) is float:
        return 0 < value < 1
    return _is(value, None, "sqrt") or (type(value) is int and 1 <= value <= MOST_SEGMENTS)


def _is(value: object, *allowed: object) -> bool:
    """Whether it is one of these, of the same type: an array would compare elementwise, and True equals 1."""
    return any(type(value) is type(one) and value == one for one in allowed)


def _plain(value: Any) -> Any:
    """NumPy's numbers and strings, and others that are derived from Python's, as Python's own."""
    if type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real) and not isinstance(value, Rational):
        return float(value)
    return str.__str__(value) if isinstance(value, str) else value


def _patterns(bits: Mapping[Any, Any]) -> dict[str, int | None]:
    _require(len(bits) > 0, "bits", bits, 'at least one pattern, as in {"*": 4}')
    found = {_plain(pattern): _plain(value) for pattern, value in bits.items()}
    for pattern, value in found.items():
        _require(type(pattern) is str and bool(pattern), "bits", bits, "patterns of module paths as keys")
        _require(_is_bits(value), f"bits[{shown(pattern)}]", value, "8, 4, 2, or None to keep values exact")
    return found


def _require(ok: bool, name: str, value: object, expected: str) -> None:
    if not ok:
        raise OptionError(f"{name}={shown(value)}: expected {expected}")
