"""A long run of a GPT with dropout on sequences of changing length: does memory grow, is anything compiled again?

Each mode runs in a process of its own and writes MODE.json, with one record for every hundred steps; modes that have
one are not run again. All files together give table.md and curves.png. The text is a random walk over words that the
model can learn; weights, batches, lengths and dropout are those of the step's number, the same in all modes, so that
the losses can be laid over each other.

Examples:

    python -m tools.soak --out docs/results/soak
    python -m tools.soak --out runs/soak --steps 200 --modes plain,8 --lowering eager
"""

from __future__ import annotations

import ctypes
import gc
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any

import matplotlib as mpl
import torch
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.progress import track
from torch import Tensor, nn
from torch.nn import functional as F

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.options.parse import parse_bits
from tools.harness import Failed, Lowering, head, line, outcome, select, write_atomically, write_text
from tools.zoo.training import plain

MIB = 2**20
LIMIT = 7200  # seconds for a mode
LABELS = {"plain": "torch.compile", "exact": "fxapprox exact", "8": "8 bits", "4": "4 bits"}
COLOURS = {"plain": "#7f7f7f", "exact": "#1b1b1b", "8": "#0072b2", "4": "#d55e00"}
WORDS, LONGEST, SHORTEST, BATCH, WIDTH, LAYERS, HEADS = 256, 128, 17, 8, 128, 4, 4
HEAD = "mode|steps|graphs compiled|after step|in use, MiB|at the end, MiB|growth, KiB|loss|largest distance to plain's"


class Block(nn.Module):
    """Attention and MLP, each behind a LayerNorm, with dropout in both; keeps (N, T, C)."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.attention_norm, self.mlp_norm = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.attention_norm(x)).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + F.dropout(self.proj(attended.transpose(1, 2).flatten(-2)), self.dropout)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout)


class GPT(nn.Module):
    """Words (N, T + 1), int64, to the mean cross-entropy of each word after those before it."""

    def __init__(self, dropout: float = 0.1) -> None:
        super().__init__()
        self.words, self.positions = nn.Embedding(WORDS, WIDTH), nn.Embedding(LONGEST, WIDTH)
        self.blocks = nn.Sequential(*(Block(dropout) for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS)

    def forward(self, text: Tensor) -> Tensor:
        read, following = text[:, :-1], text[:, 1:]
        positions = torch.arange(read.shape[1], device=text.device)
        h = self.blocks(self.words(read) + self.positions(positions))
        return F.cross_entropy(self.head(self.norm(h)).flatten(0, 1), following.flatten())


@dataclass(frozen=True)
class Record:
    """What a stretch of steps left.

    Attributes:
        step: the last of them, counted from 1.
        loss: their mean.
        in_use: bytes that the C allocator has given out and not got back, after it.
        graphs: those compiled since the beginning, training and inference.
    """

    step: int
    loss: float
    in_use: int
    graphs: int


class _Mallinfo(ctypes.Structure):
    """What glibc's mallinfo2 returns."""

    _fields_ = [(name, ctypes.c_size_t) for name in (
        "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    )]  # fmt: skip


def bytes_in_use() -> int:
    """Bytes allocated from the C library and not freed: CPU tensors, and what Python does not serve from its arenas."""
    gc.collect()
    mallinfo = ctypes.CDLL(None).mallinfo2
    mallinfo.restype = _Mallinfo
    found = mallinfo()
    return found.uordblks + found.hblkhd


def compiled(model: nn.Module, mode: str, lowering: str) -> Callable[..., Tensor]:
    """The model as a mode compiles it."""
    if mode != "plain":
        return fxapprox.compile(model, bits=parse_bits(mode), lowering=lowering)
    return plain(model, lowering)


def text_of(step: int, successors: Tensor) -> Tensor:
    """The batch of a step, (BATCH, length + 1): each word is followed by one of four."""
    generator = torch.Generator().manual_seed(step)
    length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
    words = [torch.randint(WORDS, (BATCH,), generator=generator)]
    for choice in torch.randint(successors.shape[1], (length, BATCH), generator=generator):
        words.append(successors[words[-1], choice])
    return torch.stack(words, dim=1)


def train(mode: str, steps: int, every: int, lowering: str) -> Iterator[Record]:
    """Trains from scratch; yields a record after each ``every`` steps."""
    torch.manual_seed(0)
    model, successors = GPT(), torch.randint(WORDS, (WORDS, 4))
    run, optimizer = compiled(model, mode, lowering), torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses: list[float] = []
    for step in range(1, steps + 1):
        torch.manual_seed(step)
        loss = run(text_of(step, successors))
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        del loss
        if step % every == 0 or step == steps:
            yield Record(step, fmean(losses), bytes_in_use(), adapter.graphs_compiled())
            losses.clear()


def records(modes: Iterable[str], *, steps: int, every: int, lowering: str) -> Iterator[list[dict[str, Any]]]:
    """The records of each mode, trained in this process."""
    for mode in modes:
        yield [asdict(record) for record in train(mode, steps, every, lowering)]


def saved(out: Path) -> dict[str, list[Record]]:
    """The records of all modes in the directory."""
    files = {mode: out / f"{mode}.json" for mode in LABELS}
    return {m: [Record(**r) for r in json.loads(f.read_text("utf-8"))] for m, f in files.items() if f.exists()}


def settled(records: list[Record]) -> Record:
    """The record from which on memory should stay: the first after the last compilation, and one more."""
    last = records[-1].graphs
    first = next(i for i, record in enumerate(records) if record.graphs == last)
    return records[min(first + 1, len(records) - 1)]


def table(runs: dict[str, list[Record]]) -> str:
    """A Markdown table with one row per mode."""
    lines = [line(*cells(mode, records, runs.get("plain"))) for mode, records in runs.items()]
    return "\n".join([head(*HEAD.split("|")), *lines, ""])


def cells(mode: str, records: list[Record], baseline: list[Record] | None) -> list[str]:
    """The table's cells for one mode."""
    start, end = settled(records), records[-1]
    apart = [abs(r.loss - p.loss) for r, p in zip(records, baseline or (), strict=False)]
    return [
        LABELS[mode], str(end.step), str(end.graphs), str(start.step), f"{start.in_use / MIB:.2f}",
        f"{end.in_use / MIB:.2f}", f"{(end.in_use - start.in_use) / 1024:+.0f}", f"{end.loss:.4f}",
        f"{max(apart):.4f}" if apart else "-",
    ]  # fmt: skip


def plot(runs: dict[str, list[Record]], path: Path) -> None:
    """Loss, its distance from plain torch.compile's, and memory over steps."""
    with mpl.rc_context({"font.size": 10, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(14, 4.2), layout="constrained")
        left, middle, right = figure.subplots(1, 3)
        for mode, records in runs.items():
            curve(left, mode, records, [record.loss for record in records])
            if mode != "plain" and "plain" in runs:
                pairs = zip(records, runs["plain"], strict=False)
                curve(middle, mode, records, [record.loss - plain.loss for record, plain in pairs])
            curve(right, mode, records, [record.in_use / MIB for record in records])
        left.set(title="Training loss, means", xlabel="step")
        middle.set(title="Above torch.compile's", xlabel="step")
        right.set(title="Memory in use between steps, MiB", xlabel="step")
        right.set_ylim(bottom=0)
        left.legend(frameon=False)
        figure.suptitle("GPT with dropout, sequences of changing length", weight="bold")
        figure.savefig(path, dpi=150, format="png")


def curve(axes: Axes, mode: str, records: list[Record], values: list[float]) -> None:
    """One mode's line; plain torch.compile's is wide, for others to lie on it."""
    width, alpha = (5, 0.5) if mode == "plain" else (1.5, 1)
    steps = [record.step for record in records][: len(values)]
    axes.plot(steps, values, color=COLOURS[mode], label=LABELS[mode], lw=width, alpha=alpha)
    axes.grid(alpha=0.25, linewidth=0.6)


def main(
    out: Annotated[Path, typer.Option(help="directory of the results")],
    steps: Annotated[int, typer.Option(min=1, help="training steps")] = 2000,
    every: Annotated[int, typer.Option(min=1, help="steps between two records")] = 100,
    modes: Annotated[str, typer.Option(help="comma-separated: plain, exact, 8, 4; all if empty")] = "",
    lowering: Annotated[Lowering, typer.Option(help="inductor, or eager")] = Lowering.inductor,
) -> None:
    """Runs the modes that have no file yet, then writes table and plot."""
    out.mkdir(parents=True, exist_ok=True)
    chosen = select(LABELS, modes)
    for mode in track([m for m in chosen if not (out / f"{m}.json").exists()], description="training"):
        found = outcome("tools.soak:records", mode, seconds=LIMIT, steps=steps, every=every, lowering=lowering.value)
        if isinstance(found, Failed):
            raise SystemExit(f"{mode}: {found.why}")
        write_text(out / f"{mode}.json", json.dumps(found, indent=1))
    runs = saved(out)
    write_text(out / "table.md", table(runs))
    write_atomically(out / "curves.png", lambda path: plot(runs, path))


if __name__ == "__main__":
    typer.run(main)
