"""``fxapprox bench``: memory, step time, compile time and gradient error of one training step, in many systems.

``systems`` says what is compared, ``worker`` is the process that one system runs in, ``run`` asks all workers in turns,
``records`` is what they found, ``show`` presents it.
"""
