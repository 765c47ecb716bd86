"""One sentence from an audit's numbers: how many bits to use, and what fewer would cost."""

from __future__ import annotations

from math import inf

from fxapprox.bits import DEFAULT
from fxapprox.measure.audit.records import AuditData, BitsAudit
from fxapprox.measure.gradient_error import GradientError

# A setting is recommended up to these. In docs/results 4 bits, with 6 to 12% of error, train as exact mode does, and
# 2 bits, with 15% and more, fall behind, although nearly all of it is noise. A tenth more variance is what a batch
# smaller by a tenth has.
MAX_ERROR = 0.12
MAX_UNKNOWN_ERROR = 0.05  # where bias and noise are not told apart
MAX_BIAS = 0.03
MAX_ADDED_VARIANCE = 0.10
WORTH_A_RULE, ALL_OF_IT = 0.25, 0.95  # shares of the squared error between which a module is worth a rule of its own


def recommend(audit: AuditData) -> str:
    """What to use, and what the next smaller setting would cost; every number in it is the audit's."""
    if not audit.baseline_bytes:
        return "Nothing is stored for backward here: there is nothing to choose."
    if all(setting.total.error is None for setting in audit.settings):
        return "No error can be told, because the exact gradient is zero or not finite."
    ordered = sorted(audit.settings, key=lambda setting: -setting.saved_bytes)
    safe = [setting for setting in ordered if is_safe(setting.total)]
    if not safe:
        best = min(ordered, key=lambda setting: inf if setting.total.error is None else setting.total.error)
        text = f"Nothing here is safe: {best.label} has the least error, {_error(best)}{_rule(audit, best)}"
        return f"{text}; use exact mode."
    chosen = min(safe, key=lambda setting: (setting.saved_bytes, setting.total.error))
    if chosen.saved_bytes >= audit.exact_bytes:
        return "Use exact mode: no number of bits stores less."
    smaller = [setting for setting in ordered if setting.saved_bytes < chosen.saved_bytes]
    rule = _rule(audit, chosen)
    less = f"{_less(audit.baseline_bytes, chosen)} less stored than by plain torch.compile"
    text = f"Use {chosen.label}: {_error(chosen)}{rule}, {less}"
    if not smaller:
        return f"{text}."
    following = smaller[0]
    more = f"{_less(chosen.saved_bytes, following)} less still, at {_error(following)}"
    return f"{text}; {following.label} stores {more}{'' if rule else _rule(audit, following)}."


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
        if cause.module and cause.bits < DEFAULT:
            shares[cause.module] = shares.get(cause.module, 0.0) + cause.share
    return max(shares.items(), key=lambda item: item[1], default=("", 0.0))


def _rule(audit: AuditData, setting: BitsAudit) -> str:
    """What keeping the worst module in 8 bits would give; "" where none stands out, or little else is left."""
    module, share = worst_module(setting)
    if not WORTH_A_RULE <= share <= ALL_OF_IT or not setting.total.error:
        return ""
    eights = [other.total.error for other in audit.settings if other.bits == DEFAULT]
    floor = eights[0] if eights and eights[0] else 0.0  # what 8 bits leave, at most
    left = ((1 - share) * setting.total.error**2 + floor**2) ** 0.5
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
