"""What an audit finds, and what it can be turned into: advice, JSON, text."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from typing import Any

from fxapprox.measure.audit.advice import recommend
from fxapprox.measure.audit.records import AuditData
from fxapprox.measure.audit.text import audit_text

SCHEMA = 1


class Audit(AuditData):
    """The gradient errors of a model: ``AuditData``, and what it can be turned into."""

    @property
    def recommendation(self) -> str:
        """What to use, in one sentence; see ``fxapprox.measure.audit.advice`` for how it comes from the numbers."""
        return recommend(self)

    def to_json(self) -> str:
        """All fields, and the recommendation; ``schema`` grows by one when a field changes its meaning.

        Numbers that cannot be told, or are not finite, are null.
        """
        content = {"schema": SCHEMA, **asdict(self), "recommendation": self.recommendation}
        return json.dumps(_finite(content), indent=1)

    def __str__(self) -> str:
        return audit_text(self)


def _finite(value: Any) -> Any:
    """The value with None for numbers that JSON does not have."""
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
