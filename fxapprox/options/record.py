"""The options: each described once, in its field; one frozen record, validated before anything is traced.

What the README says of an option, what errors, ``help`` and the command line say, how a terminal's text is read, what
reports name and what stands in cache keys: all of it comes from the field's ``Option``.
"""

from __future__ import annotations

import difflib
import os
import re
import textwrap
import warnings
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict, get_args

from fxapprox.bits import BOUNDARIES, DEFAULT, OFFERED, PROVISIONAL
from fxapprox.errors import OptionError, shown
from fxapprox.options import parse
from fxapprox.options.patterns import close_to, covers, winner
from fxapprox.options.values import (
    are_sensitivities,
    is_budget,
    is_count,
    is_one_of,
    is_saved_plan,
    is_slices,
    key_of_plan,
    key_of_policy,
    load_bits,
    load_plan,
    load_sensitivities,
    plain,
    require,
)

if TYPE_CHECKING:  # whoever asks for help on the command line need not wait for torch
    from fxapprox.codecs import Codec
    from fxapprox.files.plan_file import SavedPlan
    from fxapprox.files.sensitivity import Sensitivities
    from fxapprox.ir.records import Activation

Rounding = Literal["nearest", "stochastic"]
Lowering = Literal["inductor", "eager"]
Count = int | float | Literal["sqrt"]  # of segments, or a share of what they can take off the peak


@dataclass(frozen=True, slots=True)
class Option:
    """What there is to know of one option besides its name, type and default.

    Attributes:
        help: what it is, for tables and docstrings.
        expected: which values it may have, for errors.
        check: whether something is such a value; an error that it raises says more than ``expected``.
        more: what a docstring says besides.
        load: makes the value of what was given; files are read.
        typed: what the command line takes for it; "": it has no such option.
        parse: makes the value of what was typed.
        blank: what is typed for None.
        told: whether reports name it.
        key: its part of a cache key; None: nothing is to be cached.
    """

    help: str
    expected: str
    check: Callable[[Any], bool]
    more: str = ""
    load: Callable[[Any], Any] = plain
    typed: str = ""
    parse: Callable[[str], Any] = str
    blank: str = ""
    told: bool = False
    key: Callable[[Any], str | None] = repr


def _about(**known: Any) -> dict[str, Option]:
    return {"option": Option(**known)}


@dataclass(frozen=True, slots=True)
class Options:
    """How activations are stored for backward."""

    bits: int | Literal["auto"] | Mapping[str, int | None] | None = field(
        default=DEFAULT,
        metadata=_about(
            help="8, 4 or 2 bits per stored element; `None`: exact mode, lossless savings only; or by module path:"
            ' `{"layers.*.attn": 8, "*": 4}`; `"auto"`: chosen for each value',
            more="Values that need more get more (`LEAST_BITS` in codecs/choose.py). A pattern covers the modules whose"
            " path it matches, and all inside them; where several do, the one with most literal characters wins; what"
            ' none covers gets 8. With `"auto"` each value gets 8, 4, 3 or 2: what lowers the gradient error most.',
            expected='8, 4, 2, None for exact mode, "auto", or a mapping from patterns',
            load=load_bits,
            check=lambda value: isinstance(value, Mapping) or is_one_of(value, "auto", None, *OFFERED),
            typed="8, 4, 2, exact (lossless savings only), auto, or by module: layers.*.attn=8,*=4.",
            parse=parse.parse_bits,
            told=True,
        ),
    )
    average_bits: float = field(
        default=4.0,
        metadata=_about(
            help='with `bits="auto"`: bits per stored element on the average, 2 to 32; above 8 some values are exact',
            more="Those are exact that gain the most by it.",
            expected="a number from 2 to 32",
            check=lambda value: type(value) in (int, float) and 2 <= value <= 32,
            typed="With --bits auto: bits an element, on the average.",
            parse=float,
            told=True,
        ),
    )
    sensitivities: Sensitivities | None = field(
        default=None,
        metadata=_about(
            help='with `bits="auto"`: what `fxapprox.calibrate` measured, or its file; `None`: the graph alone decides',
            expected="what fxapprox.calibrate returned, or the path of its file",
            load=load_sensitivities,
            check=are_sensitivities,
        ),
    )
    error: float | None = field(
        default=None,
        metadata=_about(
            help="how far off the gradients may be, relative to the exact ones, such as `0.02`: the first training step"
            " is exact and measures; the others store as little as that allows",
            more="The bound holds for the whole gradient, and three times as much for each parameter's (but for those"
            " that are rounding noise: below 1e-5 of the whole), on that step's batch. It chooses bits, which are not"
            " to be given. Each graph of a model measures for itself; it takes at most the time of thirty steps.",
            expected="None, or a number above 0 and below 1",
            check=lambda value: value is None or (type(value) is float and 0 < value < 1),
            told=True,
        ),
    )
    plan: SavedPlan | str | os.PathLike[str] | None = field(
        default=None,
        metadata=_about(
            help="a saved plan or its file: the same values in the same codecs as when it was saved",
            more="`report.plan.save(path)` saves one. Bits, rounding and policy are not asked then.",
            expected="a SavedPlan or the path of its file",
            load=load_plan,
            check=is_saved_plan,
            key=key_of_plan,
        ),
    )
    checkpoint: Count | None = field(
        default=None,
        metadata=_about(
            help='compute segments of forward again in backward: `"sqrt"`, as many as give the lowest peak; a fraction,'
            " for that share of it; or their number",
            more="They start from values at their boundaries (Chen et al. 2016); their activations, in `bits` each, are"
            " there only while a segment's backward runs. For a fraction between 0 and 1 as few operators run again as"
            " take this share of it off the peak.",
            expected='None, "sqrt", a fraction between 0 and 1, or a number of segments',
            check=is_count,
            typed="Compute again in backward: sqrt (lowest peak), a share of that (0.5), or segments by number.",
            parse=parse.parse_checkpoint,
            told=True,
        ),
    )
    checkpoint_bits: int | None = field(
        default=None,
        metadata=_about(
            help="8 or 4 bits for the values at the segments' boundaries, and for what goes into the model's own"
            " `torch.utils.checkpoint` regions; `None`: exact, and the gradients those without checkpoints",
            more="Forward's decisions and statistics inside are stored as well then, so that they are not taken again.",
            expected="8, 4, or None: exact",
            check=lambda value: is_one_of(value, None, *BOUNDARIES),
            typed="With --checkpoint: 8 or 4 bits for the values at the boundaries, or exact.",
            parse=parse.parse_checkpoint_bits,
            blank=parse.EXACT,
            told=True,
        ),
    )
    memory_budget: float | str | None = field(
        default=None,
        metadata=_about(
            help='the peak of a training step that is allowed: a fraction of plain `torch.compile`\'s, or `"2GiB"`;'
            " chooses bits and checkpoints",
            more="For the least time and error that fit; they are not to be given, but for `bits=None`, which keeps the"
            " choice lossless. Each graph of a model is held to it by itself.",
            expected='a fraction of plain torch.compile\'s peak, up to 1, or an amount such as "2GiB"',
            check=is_budget,
            typed="Choose bits and checkpoints for this peak: 0.3 of torch.compile's, or 2GiB.",
            parse=parse.parse_budget,
            told=True,
        ),
    )
    slices: int | Literal["auto"] | None = field(
        default="auto",
        metadata=_about(
            help='run what is around the widest products in so many slices of their rows; `"auto"`: where the predicted'
            " peak falls by a tenth; `None`: never",
            more="Logits and their gradient, and decoded operands of a convolution's gradients, are never whole then."
            " Exact, but for the order in which sums over rows are added up.",
            expected='None, "auto", or a number of slices from 2 to 1024',
            check=is_slices,
            typed="Run wide parts slice by slice: auto (where the peak falls by a tenth), a number of slices, or none.",
            parse=parse.parse_slices,
            blank=parse.NONE,
            told=True,
        ),
    )
    rounding: Rounding = field(
        default="nearest",
        metadata=_about(
            help='`"nearest"`, or `"stochastic"`: unbiased rounding in the group codec',
            more="To the nearest is the least error per step; an unbiased one averages out over steps (ActNN, Chen et"
            " al. 2021, section 3).",
            expected='"nearest" or "stochastic"',
            check=lambda value: is_one_of(value, *get_args(Rounding)),
            typed="nearest, or stochastic.",
            told=True,
        ),
    )
    min_bytes: int = field(
        default=4096,
        metadata=_about(
            help="leave smaller tensors alone",
            expected="a number of bytes, 0 or more",
            check=lambda value: type(value) is int and value >= 0,
            typed="Leave smaller tensors alone.",
            parse=int,
        ),
    )
    policy: Callable[[Activation], Codec | None] | None = field(
        default=None,
        metadata=_about(
            help="`Activation -> Codec or None`: the last word on each stored value;"
            " [by class, by module](docs/policies.md), [with a codec of your own](docs/codecs.md)",
            expected="a function Activation -> Codec | None",
            check=lambda value: value is None or callable(value),
            key=key_of_policy,
        ),
    )
    lowering: Lowering = field(
        default="inductor",
        metadata=_about(
            help='`"inductor"`, or `"eager"`: run the rewritten graphs as they are, for debugging',
            expected='"inductor" or "eager"',
            check=lambda value: is_one_of(value, *get_args(Lowering)),
            typed="inductor, as in training, or eager: the graphs as they are, which need not be compiled.",
            told=True,
        ),
    )
    strict: bool = field(
        default=False,
        metadata=_about(
            help="raise where a graph cannot be rewritten, instead of warning and storing it exactly",
            expected="True or False",
            check=lambda value: type(value) is bool,
        ),
    )

    def __post_init__(self) -> None:
        for name, option in OPTIONS.items():
            value = option.load(getattr(self, name))
            require(option.check(value), name, value, option.expected)
            object.__setattr__(self, name, value)
        given = [name for name, own in (("bits", self.bits not in (None, DEFAULT)), ("plan", self.plan is not None),
                                        ("checkpoint", self.checkpoint is not None)) if own]  # fmt: skip
        chosen = [name for name in ("bits", "plan", "memory_budget", "sensitivities")
                  if getattr(self, name) != DEFAULTS[name]]  # fmt: skip
        if self.error is not None and chosen:
            raise OptionError(f"error chooses bits by itself: leave out {chosen[0]}=")
        if self.memory_budget is not None and given:
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

    @property
    def text(self) -> str:
        """What was asked for, as ``compile`` takes it, e.g. "bits=4, checkpoint='sqrt'"."""
        asked = [name for name, option in OPTIONS.items() if option.told and (name in self._own or name == "bits")]
        asked = [name for name in asked if name != "bits" or (self.memory_budget is None and self.error is None)]
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in asked)

    @property
    def key(self) -> str | None:
        """What tells options apart in caches of what is compiled; None where the user's own code steers it unnamed."""
        parts = {name: option.key(getattr(self, name)) for name, option in OPTIONS.items()}
        return None if None in parts.values() else repr(parts)

    @property
    def _own(self) -> set[str]:
        """Names of the options that have not their defaults."""
        return {each.name for each in fields(self) if getattr(self, each.name) != each.default}

    def require_no_error(self, what: str) -> Options:
        """The options, where a step is not run that could be measured.

        Raises:
            OptionError: ``error`` is set.
        """
        if self.error is not None:
            raise OptionError(f"error= is measured in a training step, and {what} runs none: give bits=, or train for"
                              " two steps and ask fxapprox.reports")  # fmt: skip
        return self

    def warn_of_idle(self) -> None:
        """Warns of options that have no effect, because what they go with is missing."""
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
            if why and name in self._own:
                warnings.warn(f"{name}= has no effect: {why}", stacklevel=3)

    def bits_of(self, module: str) -> int | None:
        """Bits for values made in the module with this path; None: exactly."""
        if self.bits == "auto":
            return PROVISIONAL
        if not isinstance(self.bits, Mapping):
            return self.bits
        pattern = winner(self.bits, module)
        return DEFAULT if pattern is None else self.bits[pattern]

    def check_patterns(self, model: object) -> None:
        """Checks that every pattern in ``bits`` covers some module of a model; a function has none to check.

        Raises:
            OptionError: a pattern covers none; the message names close ones.
        """
        from torch import nn

        if not isinstance(self.bits, Mapping) or not isinstance(model, nn.Module):
            return
        paths = [name for name, _ in model.named_modules()]
        for pattern in self.bits:
            if not any(covers(pattern, path) for path in paths):
                near = close_to(pattern, paths)
                hint = f"close ones are {', '.join(map(repr, near))}" if near else "named_modules() lists them"
                raise OptionError(f"bits: no module of the model matches {pattern!r}; {hint}")


class OptionKeywords(TypedDict, total=False):
    """The options as keyword arguments, for editors and type checkers: see :class:`Options`.

    Paths stand for files, and a text may be one that only running the code tells.
    """

    bits: int | Literal["auto"] | str | Mapping[str, int | None] | None
    average_bits: float
    sensitivities: Sensitivities | str | os.PathLike[str] | None
    error: float | None
    plan: SavedPlan | str | os.PathLike[str] | None
    checkpoint: Count | str | None
    checkpoint_bits: int | None
    memory_budget: float | str | None
    slices: int | Literal["auto"] | str | None
    rounding: Rounding | str
    min_bytes: int
    policy: Callable[[Activation], Codec | None] | None
    lowering: Lowering | str
    strict: bool


OPTIONS: dict[str, Option] = {each.name: each.metadata["option"] for each in fields(Options)}
DEFAULTS: dict[str, Any] = {each.name: each.default for each in fields(Options)}
NAMES = tuple(OPTIONS)


def documented() -> str:
    """All options and what they are, as a list of arguments in a docstring."""
    return "\n".join(_paragraph(each) for each in fields(Options))


def _paragraph(option: Field[Any]) -> str:
    about: Option = option.metadata["option"]
    text = f"{option.name}: {about.help}.{' ' if about.more else ''}{about.more}".replace("`", "``")
    text = re.sub(r"\[([^]]*)\]\(([^)]*)\)", r"\1 (\2)", text)  # links
    return textwrap.fill(text, 120, initial_indent=" " * 4, subsequent_indent=" " * 8, break_on_hyphens=False)


Options.__doc__ = f"""{Options.__doc__}

Attributes:
{documented()}

Raises:
    OptionError: a value is not one of those above.
"""


def table() -> str:
    """The options as the README shows them: a table in Markdown."""
    rows = [f"| `{name}` | {_default_text(DEFAULTS[name])} | {option.help} |" for name, option in OPTIONS.items()]
    return "\n".join(["| option | default | |", "|---|---|---|", *rows])


def _default_text(value: object) -> str:
    if type(value) in (int, float):
        return f"{value:g}"
    return f'`"{value}"`' if isinstance(value, str) else f"`{value}`"


def require_names(given: object) -> None:
    """Checks that this is a mapping from names of options.

    Raises:
        OptionError: it is something else.
    """
    require(isinstance(given, Mapping) and all(isinstance(name, str) for name in given), "options", given,
             "a mapping from names of options to their values")  # fmt: skip


def unknown_option(name: str, known: tuple[str, ...]) -> str:
    """The message for an option nobody knows, with the nearest name that exists."""
    near = difflib.get_close_matches(name[:100], known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"options are {', '.join(NAMES)}"
    return f"unknown option {shown(name)}; {hint}"
