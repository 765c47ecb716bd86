"""One sentence from an audit's numbers: how many bits to use, and what fewer would cost."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING

from fxapprox.options import DEFAULT_BITS

if TYPE_CHECKING:
    from fxapprox.audit import Audit, BitsAudit
    from fxapprox.gradient_error import GradientError

# A setting is recommended up to these. Training runs (docs/results) end where exact ones do at 10% of error, and are
# worse from 20%; a tenth more variance is what a batch smaller by a tenth has.
MAX_ERROR = 0.15
MAX_UNKNOWN_ERROR = 0.05  # where bias and noise are not told apart
MAX_BIAS = 0.03
MAX_ADDED_VARIANCE = 0.10
WORTH_A_RULE = 0.25  # share of the squared error that one module has to cause


def recommend(audit: Audit) -> str:
    """What to use, and what the next smaller setting would cost; every number in it is the audit's."""
    if not audit.baseline_bytes:
        return "Nothing is stored for backward here: there is nothing to choose."
    if all(setting.total.error is None for setting in audit.settings):
        return "No error can be told, because the exact gradient is zero or not finite."
    ordered = sorted(audit.settings, key=lambda setting: -setting.saved_bytes)
    safe = [setting for setting in ordered if is_safe(setting.total)]
    if not safe:
        best = min(ordered, key=lambda setting: inf if setting.total.error is None else setting.total.error)
        return f"Nothing here is safe: {best.label} has the least error, {_error(best)}{_rule(best)}; use exact mode."
    chosen = min(safe, key=lambda setting: (setting.saved_bytes, setting.total.error))
    if chosen.saved_bytes >= audit.exact_bytes:
        return "Use exact mode: no number of bits stores less."
    smaller = ordered[ordered.index(chosen) + 1 :]
    rule = _rule(chosen)
    text = f"Use {chosen.label}: {_error(chosen)}{rule}, {_less(audit.baseline_bytes, chosen)} less stored than by"\
        " plain torch.compile"  # fmt: skip
    if not smaller:
        return f"{text}."
    following, less = smaller[0], _less(chosen.saved_bytes, smaller[0])
    return (
        f"{text}; {following.label} stores {less} less still, at {_error(following)}{'' if rule else _rule(following)}."
    )


def is_safe(total: GradientError) -> bool:
    """Whether an error is one that trainings have been seen to end well with; see the limits in this file."""
    if total.error is None:
        return False
    if total.bias is None:
        return total.error <= MAX_UNKNOWN_ERROR
    return (
        total.error <= MAX_ERROR
        and total.bias <= MAX_BIAS
        and (total.added_variance is None or total.added_variance <= MAX_ADDED_VARIANCE)
    )


def worst_module(setting: BitsAudit) -> tuple[str, float]:
    """The module whose values in less than 8 bits cause most of the squared error, and its share; ("", 0) if none."""
    shares: dict[str, float] = {}
    for cause in setting.causes:
        if cause.module and cause.bits < DEFAULT_BITS:
            shares[cause.module] = shares.get(cause.module, 0.0) + cause.share
    return max(shares.items(), key=lambda item: item[1], default=("", 0.0))


def _rule(setting: BitsAudit) -> str:
    """What keeping the worst module in 8 bits would give; "" where no module stands out."""
    module, share = worst_module(setting)
    if share < WORTH_A_RULE or not setting.total.error:
        return ""
    left = setting.total.error * max(0.0, 1 - share) ** 0.5
    return f", about {percent(left)} with module {module} kept at 8 bits"


def _error(setting: BitsAudit) -> str:
    total = setting.total
    text = f"{percent(total.error)} error"
    return text if total.noise is None else f"{text} ({total.noise:.0%} of it noise that averages out)"


def _less(before: int, setting: BitsAudit) -> str:
    return f"{before / setting.saved_bytes:.1f}x" if setting.saved_bytes else "all"


def percent(value: float | None) -> str:
    """A relative number in two digits: "0.43%", "7.1%", "110%", "3e-05%"; "?" for None."""
    if value is None:
        return "?"
    if value == 0:
        return "0%"
    return f"{value:.0%}" if value >= 0.0995 else f"{100 * value:.2g}%"
