"""How one value is kept for backward: a record that reports, drawings and pages are derived from, and its text."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Literal

from fxapprox.codecs import Codec, Exact


class Fate(enum.Enum):
    """What becomes of a value; the text is what reports print where nothing more is to be said."""

    STORED = "stored"
    CARRIED = "inside its code"
    RECOMPUTED = "recomputed"
    UNNEEDED = "not needed"
    FREE = "free"
    COPIED = "copied (channels-last)"
    NOT_COPIED = "not copied (channels-last)"


@dataclass(frozen=True, slots=True)
class Storage:
    """How one value is kept for backward.

    Attributes:
        fate: see ``Fate``.
        codec: in which it is stored; None for what is not stored itself.
        carrier: of a value that another one's code holds: the name of that one; "" where it is a part of its own code.
        role: what segments need it for that are computed again; "" for what the plan stores.
        segment: in which it, or its code, is computed again, counted from 1; None: in none.
    """

    fate: Fate
    codec: Codec | None = None
    carrier: str = ""
    role: Literal["", "boundary", "for recomputation"] = ""
    segment: int | None = None

    @classmethod
    def stored(cls, codec: Codec, segment: int | None = None) -> Storage:
        return cls(Fate.STORED, codec, segment=segment)

    @classmethod
    def carried(cls, carrier: str) -> Storage:
        return cls(Fate.CARRIED, carrier=carrier)

    @classmethod
    def recomputed(cls, segment: int | None = None) -> Storage:
        return cls(Fate.RECOMPUTED, segment=segment)

    @property
    def lossless(self) -> bool | None:
        """Whether the codec gives it back bit by bit; None where there is none."""
        return None if self.codec is None else self.codec.lossless

    @property
    def is_exact(self) -> bool:
        """Whether it is stored as it is, not in a code."""
        return isinstance(self.codec, Exact)

    @property
    def text(self) -> str:
        """What reports print, e.g. "4-bit threshold", "exact", "boundary, 8-bit group", "in the code of relu"."""
        if self.segment is not None and self.fate is Fate.RECOMPUTED:
            return f"recomputed in segment {self.segment}"
        what = self.codec.text if self.codec is not None else self.fate.value
        if self.carrier:
            what = f"in the code of {self.carrier}"
        again = f", recomputed in segment {self.segment}" if self.segment is not None else ""
        return ", ".join(filter(None, (self.role, what))) + again
