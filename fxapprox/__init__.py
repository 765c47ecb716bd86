"""fxapprox: train in a fraction of the activation memory, as a graph-rewriting backend of torch.compile."""

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
