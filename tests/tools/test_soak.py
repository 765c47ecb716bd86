"""The long run's pieces, in a few steps."""

from __future__ import annotations

import torch

from tools import soak
from tools.soak import Record


def test_same_text_for_the_same_step() -> None:
    successors = torch.randint(soak.WORDS, (soak.WORDS, 4))
    texts = [soak.text_of(step, successors) for step in (1, 1, 2)]
    assert torch.equal(texts[0], texts[1])
    assert texts[0].shape != texts[2].shape
    followers = successors[texts[0][:, :-1]]
    assert (followers == texts[0][:, 1:, None]).any(-1).all()


def test_short_run_beside_plain() -> None:
    plain, eight = (list(soak.train(mode, steps=4, every=1, lowering="eager")) for mode in ("plain", "8"))
    assert [r.step for r in eight] == [1, 2, 3, 4]
    assert plain[0].loss == eight[0].loss
    assert eight[-1].graphs > plain[-1].graphs  # one process: the counter goes on
    assert all(r.in_use > 0 for r in eight)


def test_growth_counts_after_the_last_compilation() -> None:
    records = [Record(2, 5.0, 2**20, 1), Record(4, 4.0, 2**21, 2), Record(6, 3.0, 2**22, 2), Record(8, 2.0, 2**22, 2)]
    assert soak.settled(records) == records[2]
    text = soak.table({"plain": records, "8": [*records[:3], Record(8, 2.5, 2**22 + 1024, 2)]})
    assert "| 8 bits | 8 | 2 | 6 | 4.00 | 4.00 | +1 | 2.5000 | 0.5000 |" in text
