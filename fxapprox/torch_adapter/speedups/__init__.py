"""What spares Inductor work and gives the processor better code, and changes no result: mostly patches, one file each.

Each file says what it patches, in which versions of torch, and what it saves; ``switch`` has the list.
FXAPPROX_SPEEDUPS=0 in the environment turns all of them off, for those who look for a bug.
"""

import os

SWITCH = "FXAPPROX_SPEEDUPS"


def are_on() -> bool:
    """Whether the environment leaves them on."""
    return os.environ.get(SWITCH, "1") != "0"
