"""Documents, options and command lines with something changed: what ``tools.mutations`` tries."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from random import Random
from typing import Any

Place = tuple[Any, Any]  # a list or an object, and an index or a name in it

# What is put in place of a value; a raw text stands in the document as it is, which json.dumps would not write.
ODD: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 3, 4, 5, 8, 8.0, 0.5, -0.5, 1e300, 2**31, 2**63, 10**30, "", " ", "0", "4",
    "false", "None", "nearest", "float32", "nn", "bfloat16", "torch.float32", "a\0b", "\ud800",
    "\N{GREEK SMALL LETTER MU}", "x" * 5000, [], {}, [[]], [None], {"": 4}, {"*": 4}, {"a": {"b": {}}},
)  # fmt: skip
RAW = (
    "NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 5000, "[" * 3000 + "]" * 3000, "01", "'x'", "1.", "// x",
)  # fmt: skip
MARK = "a raw text stands here: "
WORDS = (
    "", " ", ",", "=", "*", "-", "+", ".", "0", "4", "9" * 5000, "1e999", "nan", "inf", "GiB", "MiB", "exact", "auto",
    "sqrt", "\0", "\N{ARABIC-INDIC DIGIT FOUR}", "\N{SUPERSCRIPT TWO}", "[", "]", "?", "!", "\n", "8=8", "true",
    "1_000", "0x10",
)  # fmt: skip


def mutated_value(rng: Random, value: Any) -> Any:
    """A copy of plain data with one to three changes: types, values, names, what is missing or there twice."""
    whole = [copy.deepcopy(value)]
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        if places := _places(whole):
            rng.choice(CHANGES)(rng, *rng.choice(places))
    return whole[0] if whole else None


def mutated_document(rng: Random, value: Any) -> bytes:
    """A document with changes in its data or in its bytes."""
    if rng.random() < 0.75:
        text = json.dumps(mutated_value(rng, value))
        for raw in RAW:
            text = text.replace(json.dumps(MARK + raw), raw)
        return text.encode()
    data = bytearray(json.dumps(value).encode())
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(data) + 1)
        what = rng.randrange(6)
        if what == 0:
            data[at:] = b""  # cut off
        elif what == 1:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif what == 2:
            data[at : at + rng.randrange(1, 30)] = b""
        elif what == 3:
            data[at:at] = data[at : at + rng.randrange(1, 60)]  # twice
        elif what == 4:
            data[at:at] = rng.choice(RAW).encode()
        else:
            data = bytearray(bytes(data).decode(errors="replace").encode(rng.choice(("utf-16", "utf-8-sig", "utf-32"))))
    return bytes(data)


def mutated_text(rng: Random, text: str) -> str:
    """What somebody could have typed in place of this."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        at = rng.randrange(len(text) + 1)
        until = min(len(text), at + rng.choice((0, 1, 1, 3)))
        text = text[:at] + rng.choice((*WORDS, text[at:until] * 2)) + text[until:]
    return text


def _places(value: Any) -> list[Place]:
    """Every place in plain data."""
    keys = value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    found = [(value, key) for key in keys]
    return found + [place for holder, key in found for place in _places(holder[key])]


def _replace(rng: Random, holder: Any, key: Any) -> None:
    holder[key] = copy.deepcopy(rng.choice((*ODD, *(MARK + raw for raw in RAW))))


def _retype(rng: Random, holder: Any, key: Any) -> None:
    """The same value in another type."""
    value = holder[key]
    holder[key] = rng.choice((str(value)[:100], [value], {"value": value}, bool(value), str(value).lower()[:100], None))
    if type(value) in (int, float) and rng.random() < 0.5:
        holder[key] = rng.choice((float(value), -value, value + 1, value * 1000, value == 1))


def _delete(rng: Random, holder: Any, key: Any) -> None:
    del holder[key]


def _duplicate(rng: Random, holder: Any, key: Any) -> None:
    """A list's item twice; an object's under another name too."""
    if isinstance(holder, list):
        holder.insert(key, copy.deepcopy(holder[key]))
    else:
        holder[rng.choice((f"{key}_", key.upper(), "new", ""))] = copy.deepcopy(holder[key])


def _vary(rng: Random, holder: Any, key: Any) -> None:
    """Another value that may stand there: what comes out is often valid."""
    value, varied = holder[key], {"bits": (8, 4, 3, 2), "rounding": ("nearest", "stochastic"), "torch": ("2.12", "?")}
    if key in varied:
        holder[key] = rng.choice(varied[key])
    elif type(value) is bool:
        holder[key] = not value
    elif type(value) is float:
        holder[key] = value * rng.random()
    else:
        _replace(rng, holder, key)


def _rename(rng: Random, holder: Any, key: Any) -> None:
    if isinstance(holder, dict):
        holder[rng.choice((f"{key}s", key[:-1], key.upper(), "x", "8", "5"))] = holder.pop(key)
    else:
        holder[key] = rng.choice(ODD[:20])


def _swap(rng: Random, holder: Any, key: Any) -> None:
    """Two places of one holder exchange what they have."""
    other = rng.choice(list(holder) if isinstance(holder, dict) else range(len(holder)))
    holder[key], holder[other] = holder[other], holder[key]


CHANGES: tuple[Callable[[Random, Any, Any], None], ...] = (
    _replace, _replace, _vary, _vary, _retype, _delete, _duplicate, _rename, _swap,
)  # fmt: skip
