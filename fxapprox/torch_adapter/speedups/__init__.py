"""Patches of Inductor that change no result: it compiles sooner, and what it makes is faster."""
