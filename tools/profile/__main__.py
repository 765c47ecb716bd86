"""Where time and bytes go: compiling, a training step, our passes, the kernels, the codecs. Each prints a table."""

from __future__ import annotations

from tools.harness import commands
from tools.profile import codecs, compile, kernels, passes, step

app = commands(__doc__, compile, step, passes, kernels, codecs)

if __name__ == "__main__":
    app()
