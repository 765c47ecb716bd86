"""Codecs: how one saved activation is stored between forward and backward.

A codec is two ordinary PyTorch functions. ``encode`` turns a value into the parts that are stored, ``decode`` turns
the parts back. Both are traced into the graphs, so a codec needs no kernel of its own, and Inductor fuses it into its
neighbours.
"""

from fxapprox.codecs.base import ALONE, Carrier, Codec, Context, Copy, Exact, Identity, Like, Need, Predicate, encoded
from fxapprox.codecs.cast import Cast
from fxapprox.codecs.complex import Complex
from fxapprox.codecs.group import Group
from fxapprox.codecs.mask import Integer, Mask
from fxapprox.codecs.probe import Probe
from fxapprox.codecs.standard import Standard
from fxapprox.codecs.threshold import Threshold
from fxapprox.codecs.zero import Zero

__all__ = [
    "ALONE",
    "Carrier",
    "Cast",
    "Codec",
    "Complex",
    "Context",
    "Copy",
    "Exact",
    "Group",
    "Identity",
    "Integer",
    "Like",
    "Mask",
    "Need",
    "Predicate",
    "Probe",
    "Standard",
    "Threshold",
    "Zero",
    "encoded",
]
