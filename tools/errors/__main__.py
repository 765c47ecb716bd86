"""How far gradients are off: of whole models, of each codec, of automatic bits, of checkpoints, and under a bound."""

from __future__ import annotations

from tools.errors import auto, bound, checkpoint, codec, model
from tools.harness import commands

app = commands(__doc__, model, codec, auto, checkpoint, bound)

if __name__ == "__main__":
    app()
