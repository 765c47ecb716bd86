"""fxapprox: train in a fraction of the activation memory, as a graph-rewriting backend of torch.compile."""

from fxapprox.activation import Activation, Class, Decision, Reach
from fxapprox.backend import compile
from fxapprox.errors import FxApproxError, InvalidPlan, OptionError, TargetError, UnsupportedGraph
from fxapprox.explain import explain, reports
from fxapprox.options import Options
from fxapprox.report import Report

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Class",
    "Decision",
    "FxApproxError",
    "InvalidPlan",
    "OptionError",
    "Options",
    "Reach",
    "Report",
    "TargetError",
    "UnsupportedGraph",
    "compile",
    "explain",
    "reports",
]
