"""Where in the user's own code something happened or was made: lines, modules, graph breaks, and errors in one line."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import fx

from fxapprox import torch_adapter as adapter

OURS = Path(__file__).resolve().parents[1]
FOLDERS = (OURS, (OURS / "passes").resolve())
DEMO = OURS / "demo"  # its model is a user's
TORCH = Path(torch.__file__).resolve().parent
LIBRARIES = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "purelib", "platlib"))
COMPILER = tuple(TORCH / name for name in ("_dynamo", "_functorch", "_inductor", "_subclasses", "fx"))


@dataclass(frozen=True, slots=True)
class GraphBreak:
    """A place where torch.compile gave up, ran Python, and began another graph.

    Attributes:
        reason: why, in torch's words.
        hint: what torch advises, or "".
        source: the user's line, as "file.py:12 in forward: code"; "" if it is none of theirs.
    """

    reason: str
    hint: str
    source: str


def graph_breaks(raw: Iterable[tuple[str, Sequence[traceback.FrameSummary]]]) -> tuple[GraphBreak, ...]:
    """Dynamo's records as breaks, each once: a frame that is traced again breaks again."""
    found = (GraphBreak(_reason(text), _labelled(text, "Hint"), user_line(frames)) for text, frames in raw)
    unique: dict[tuple[str, str], GraphBreak] = {}
    for each in found:
        unique.setdefault((each.reason, each.source), each)
    placed = {each.reason for each in unique.values() if each.source}
    return tuple(each for each in unique.values() if each.source or each.reason not in placed)


def breaks_text(breaks: Sequence[GraphBreak]) -> str:
    """Two lines for each break, where and why, under a title; "" if there are none."""
    if not breaks:
        return ""
    title = f"graph breaks: {len(breaks)}; what crosses one counts once"
    return "\n".join([title, *(f"  {each.source or 'the model as a whole'}\n    {each.reason}" for each in breaks)])


def described(error: BaseException) -> str:
    """An error of the user's code in one line, with their line: "ValueError: ... (file.py:12 in forward: code)"."""
    cause, frames = adapter.user_error(error)
    message = next((line.strip() for line in str(cause).splitlines() if line.strip()), "no message")
    line = user_line(frames)
    return f"{type(cause).__name__}: {message}" + (f" ({line})" if line else "")


def is_users(error: BaseException) -> bool:
    """Whether an error comes out of the model or what it calls, rather than out of us or torch's compiler."""
    cause, frames = adapter.user_error(error)
    if cause is not error or adapter.failed_in_tracing(error):
        return True
    last = _path(frames[-1]) if frames else None
    wrapped = last in (OURS / "frontend" / "target.py", OURS / "frontend" / "tracing.py")
    return last is not None and (wrapped or not any(_inside(last, place) for place in (*FOLDERS, *COMPILER)))


def is_ours(file: Path) -> bool:
    """Whether a file is one of fxapprox."""
    return any(_inside(file, folder) for folder in FOLDERS) and not _inside(file, DEMO)


def user_line(frames: Sequence[traceback.FrameSummary]) -> str:
    """The innermost frame in the user's own files, else the innermost outside of torch; "" if there is none."""
    ours = [i for i, frame in enumerate(frames) if is_ours(_path(frame))]
    foreign = [frame for frame in frames[ours[-1] if ours else 0 :] if _is_foreign(frame)]  # not those that called us
    own = [frame for frame in foreign if not any(_inside(_path(frame), place) for place in LIBRARIES)]
    if not foreign:
        return ""
    frame = (own or foreign)[-1]
    name = re.sub(r"^torch_dynamo_resume_in_(.*)_at_\d+$", r"\1", frame.name)
    return f"{_path(frame).name}:{frame.lineno} in {name}: {(frame.line or '').strip()}"


def _is_foreign(frame: traceback.FrameSummary) -> bool:
    """Neither torch's nor ours."""
    path = _path(frame)
    return not frame.filename.startswith("<") and not _inside(path, TORCH) and not is_ours(path)


def source_line(node: fx.Node) -> str:
    """The user's line that made the node, as "file.py:12 in forward: code"; "" if unknown or our own."""
    return _last_line(node.meta.get("stack_trace") or "")


@lru_cache(maxsize=4096)
def _last_line(trace: str) -> str:
    lines = [line.strip() for line in trace.strip().splitlines()]
    for place, code in zip(reversed(lines[:-1]), reversed(lines[1:]), strict=True):
        if place.startswith("File "):
            file, line, where = [*place.split(", "), "", ""][:3]
            path = Path(file.removeprefix("File ").strip('"'))
            return "" if is_ours(path.resolve()) else f"{path.name}:{line.removeprefix('line ')} {where}: {code}"
    return ""


def module_path(node: fx.Node) -> str:
    """Path of the innermost module that made the node, as in ``named_modules``; "" at the top."""
    stack = node.meta.get("nn_module_stack") or node.meta.get("fwd_nn_module_stack")
    return _plain_path(str(next(reversed(stack.values()))[0])) if stack else ""


@lru_cache(maxsize=4096)
def _plain_path(path: str) -> str:
    path = path.replace("_modules", "")
    path = re.sub(r"\[['\"]?([^\]'\"]*)['\"]?\]", r".\1", path)
    path = re.sub(r"\.+", ".", path).strip(".")
    # what comes before the model: the name of a local variable, or the cell of a closure
    return re.sub(r"^((.*\.)?cell_contents|[LG]\.\w+)(\.|$)", "", path)


def _reason(text: str) -> str:
    if text.startswith(("generic_jump", "Data-dependent branching")):  # the same in two places, told twice
        return "Dynamo does not trace a branch on the value of a tensor."
    return _labelled(text, "Explanation") or text.strip().splitlines()[0]


def _labelled(text: str, label: str) -> str:
    found = re.search(rf"^\s*{label}: (.*)$", text, flags=re.MULTILINE)
    return found[1].strip() if found else ""


def _path(frame: traceback.FrameSummary) -> Path:
    return Path(frame.filename).resolve()


def _inside(path: Path, place: Path) -> bool:
    return place in path.parents
