"""fxapprox: train in a fraction of the activation memory, as a graph-rewriting backend of torch.compile.

A public name is loaded when it is first used, so that `fxapprox --help` does not wait for torch's compiler.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxapprox import codecs as codecs
    from fxapprox import policies as policies
    from fxapprox.errors import DoesNotFit, FxApproxError, InvalidPlan, OptionError, TargetError, UnsupportedGraph
    from fxapprox.files.plan_file import SavedPlan
    from fxapprox.files.sensitivity import Sensitivities
    from fxapprox.frontend.backend import compile
    from fxapprox.frontend.explain import explain, reports, save_plan
    from fxapprox.ir.operators import teach
    from fxapprox.ir.records import Activation, Class, Decision, Reach
    from fxapprox.measure.audit.result import Audit
    from fxapprox.measure.audit.run import audit
    from fxapprox.measure.calibrate import calibrate
    from fxapprox.measure.fit.largest import BatchFit, max_batch
    from fxapprox.options import Options
    from fxapprox.report.result import Report

__version__ = "0.1.0"

__all__ = [
    "Activation",
    "Audit",
    "BatchFit",
    "Class",
    "Decision",
    "DoesNotFit",
    "FxApproxError",
    "InvalidPlan",
    "OptionError",
    "Options",
    "Reach",
    "Report",
    "SavedPlan",
    "Sensitivities",
    "TargetError",
    "UnsupportedGraph",
    "audit",
    "calibrate",
    "compile",
    "explain",
    "max_batch",
    "reports",
    "save_plan",
    "teach",
]

_MODULES = {
    "errors": "DoesNotFit FxApproxError InvalidPlan OptionError TargetError UnsupportedGraph",
    "files.plan_file": "SavedPlan",
    "files.sensitivity": "Sensitivities",
    "frontend.backend": "compile",
    "frontend.explain": "explain reports save_plan",
    "ir.operators": "teach",
    "ir.records": "Activation Class Decision Reach",
    "measure.audit.result": "Audit",
    "measure.audit.run": "audit",
    "measure.calibrate": "calibrate",
    "measure.fit.largest": "BatchFit max_batch",
    "options": "Options",
    "report.result": "Report",
}
PACKAGES = ("codecs", "policies")  # public as packages: fxapprox.codecs.Group
_HOMES = {name: module for module, names in _MODULES.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    """Loads a public name from its module."""
    if name in PACKAGES:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
