"""The rows of one model in a process of its own: python -m tools.zoo.worker ROUNDS < settings > rows

Settings come as a JSON list of lists on standard input, in the order of `Setting`'s fields. Rows go to standard output
as they are measured; what else prints goes to standard error.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings

os.environ["OMP_NUM_THREADS"] = "1"  # sums of scattered gradients come out in one order only on one thread


def main() -> None:
    """Reads settings, writes rows."""
    wanted = [Setting(*fields) for fields in json.load(sys.stdin)]
    rows = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        warnings.simplefilter("ignore")
        for row in rows_of(builder(wanted[0].model), wanted, rounds=int(sys.argv[1])):
            print(row.to_json(), file=rows, flush=True)


if __name__ == "__main__":
    from tools.zoo.measure import rows_of
    from tools.zoo.names import builder
    from tools.zoo.rows import Setting

    main()
