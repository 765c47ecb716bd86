"""In how many bits an element may be stored, for all who ask."""

CODES = (8, 4, 3, 2)  # codes with loss
OFFERED = (8, 4, 2)  # what ``bits`` takes: 3 is for "auto", which mixes them
BOUNDARIES = (8, 4)  # what ``checkpoint_bits`` takes: all that a segment computes again comes from these
DEFAULT = 8
PROVISIONAL = 4  # with which "auto" decides what to store, before it chooses bits for it
