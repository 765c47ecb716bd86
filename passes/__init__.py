"""The passes: one file per pass, run in order by `pipeline`.

An analysis reads the joint graph and returns frozen data, a plan is computed from that data alone, a rewrite
edits the graphs it is handed; none of them logs or keeps state, and the runner verifies the graph around each
one. Import this folder as `fxapprox.passes`, a tracked link to it: under its bare name, a `passes.py` beside
a user's script could take its place.
"""

if __name__ != "fxapprox.passes":
    raise ImportError(f"this package is fxapprox.passes; it was imported as {__name__!r}")
