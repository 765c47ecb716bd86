"""Targets of the command line: each thing that can be wrong with one, and the one line that says so."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

import fxapprox
from fxapprox import FxApproxError
from fxapprox.cli import app
from fxapprox.errors import TargetError
from fxapprox.frontend.explain import explain
from fxapprox.frontend.target import load, running

FACTORIES = """
import torch
from torch import nn

WIDTH = 64

def net():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))

def x():
    return torch.randn(64, 64)

def mean(out):
    return out.mean()

def raises():
    return {}["fc"]

def wants_width(width):
    return nn.Linear(width, width), (x(),)

def number(): return 3
def nothing(): pass
def only_model(): return net()
def a_list(): return [net(), (x(),)]
def one(): return (net(),)
def four(): return net(), x(), mean, 3
def text_model(): return "net", (x(),)
def swapped(): return x(), net()
def a_class(): return nn.Linear, (x(),)
def compiled(): return torch.compile(net()), (x(),)
def compiled_function(): return torch.compile(mean), (x(),)
def float_loss_fn(): return net(), (x(),), 0.5
def dict_args(): return net(), {"input": x()}
def text_args(): return net(), ("hello",)
def two_args(): return net(), (x(), x())
def no_args(): return net(), ()

def no_parameters(): return nn.ReLU(), (x(),)
def frozen(): return net().requires_grad_(False), (x(),)

class Fails(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 32), nn.Linear(64, 64)

    def forward(self, x):
        return self.b(self.a(x))

class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, x):
        if x.dim() != 3:
            raise ValueError(f"expected 3 dimensions, got {x.dim()}")
        return self.a(x)

class Detaches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, x):
        with torch.no_grad():
            return self.a(x)

class Adds(nn.Module):
    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, x):
        return x + self.bias

class Breaks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, x):
        h = torch.relu(self.a(x))
        torch._dynamo.graph_break()
        h = torch.tanh(self.a(h))
        if h.sum() > 0:
            h = h * 2
        return h

def wrong_size(): return Fails(), (x(),), mean
def own_error(): return Raises(), (x(),), mean
def loss_error(): return net(), (x(),), lambda out: out.mean() / undefined
def vector_loss(): return net(), (x(),), lambda out: out
def float_loss(): return net(), (x(),), lambda out: out.mean().item()
def tuple_loss(): return net(), (x(),), lambda out: (out, 1)
def detached_loss(): return net(), (x(),), lambda out: out.detach().mean()
def no_grad(): return Detaches(), (x(),)
def stores_nothing(): return Adds(), (x(),), mean
def outside(): return nn.LSTM(64, 64), (torch.randn(4, 8, 64),), lambda out: out[0].mean()
def breaks(): return Breaks(), (x(),), mean

def model_loss_fn(): return net(), (x(),), lambda model, x: model(x).mean()

class Indexes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(64, 64)

    def forward(self, x):
        return self.a(x)[torch.arange(3), torch.arange(3), torch.arange(3)]

def too_many_indices(): return Indexes(), (x(),), mean
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with factories, the current one."""
    (tmp_path / "targets.py").write_text(FACTORIES)
    (tmp_path / "typo.py").write_text("import torch\ndef make(:\n")
    (tmp_path / "absent.py").write_text("import torch\nimport not_installed\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "targets", raising=False)
    return tmp_path


WANTED = "expected (model, args) or (model, args, loss_fn)"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("none.py:make", "no such file: none.py"),
        ("none:make", "no module named 'none' here; a file is named with its .py"),
        ("targets.py", "'targets.py' names no factory. TARGET is module:factory or file.py:factory; the factory returns"
                       " (model, args) or (model, args, loss_fn)"),
        ("typo.py:make", "typo.py could not be imported: SyntaxError: invalid syntax (typo.py, line 2)"),
        ("absent.py:make", "absent.py could not be imported: ModuleNotFoundError: No module named 'not_installed'"
                           " (absent.py:2 in <module>: import not_installed)"),
        ("targets.py:no_parameter", "targets.py has no function 'no_parameter'; it has no_parameters, ..."),
        ("targets.py:WIDTH", "'WIDTH' in targets.py is an int, not a function; it has net, x, raises, number,"
                             " nothing, ..."),
        ("targets.py:raises", "targets.py:raises raised KeyError: 'fc' (targets.py:17 in raises: return {}[\"fc\"])"),
        ("targets.py:wants_width", "targets.py:wants_width raised TypeError: wants_width() missing 1 required"
                                   " positional argument: 'width'"),
        ("targets.py:number", f"targets.py:number returned an int: {WANTED}"),
        ("targets.py:nothing", f"targets.py:nothing returned nothing: {WANTED}"),
        ("targets.py:only_model", f"targets.py:only_model returned a Sequential: {WANTED}"),
        ("targets.py:a_list", f"targets.py:a_list returned a list: {WANTED}"),
        ("targets.py:one", f"targets.py:one returned a tuple of 1: {WANTED}"),
        ("targets.py:four", f"targets.py:four returned a tuple of 4: {WANTED}"),
        ("targets.py:text_model", "targets.py:text_model returned a str as the model: expected a module or a function"),
        ("targets.py:swapped", "targets.py:swapped returned float32[64, 64] as the model: expected a module or a"
                               " function"),
        ("targets.py:a_class", "targets.py:a_class returned the class Linear as the model: expected a module, such as"
                               " Linear(...)"),
        ("targets.py:compiled", "targets.py:compiled returned a compiled model: expected the one that torch.compile was"
                                " given"),
        ("targets.py:compiled_function", "targets.py:compiled_function returned a compiled model: expected the one that"
                                         " torch.compile was given"),
        ("targets.py:model_loss_fn", "targets.py:model_loss_fn returned a loss_fn that takes (model, x): expected a"
                                     " function of one argument, what the model returns"),
        ("targets.py:float_loss_fn", "targets.py:float_loss_fn returned a float as the loss_fn: expected a function of"
                                     " the model's output"),
        ("targets.py:dict_args", "targets.py:dict_args returned a dict as the args: expected a tuple of positional"
                                 " arguments"),
        ("targets.py:text_args", "targets.py:text_args returned args without a tensor (str): expected example inputs"),
        ("targets.py:two_args", "targets.py:two_args returned args that the model does not take: too many positional"
                                " arguments; it takes (input)"),
        ("targets.py:no_args", "targets.py:no_args returned args that the model does not take: missing a required"
                               " argument: 'input'; it takes (input)"),
        ("targets.py:no_parameters", "targets.py:no_parameters: the model has no parameters, and no argument requires a"
                                     " gradient: there is nothing to store for backward"),
        ("targets.py:frozen", "targets.py:frozen: none of the model's 4 parameters requires a gradient, and no argument"
                              " does: there is nothing to store for backward"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_loaded(spec: str, message: str, place: Path) -> None:
    with pytest.raises(TargetError) as caught:
        load(spec)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("wrong_size", "targets.py:wrong_size: the model failed with RuntimeError: a and b must have same reduction"
                       " dim, but got [64, 32] X [64, 64]. (targets.py:48 in forward: return self.b(self.a(x)))"),
        ("too_many_indices", "targets.py:too_many_indices: the model failed with IndexError: too many indices for"
                             " tensor of dimension 2 (targets.py:110 in forward: return self.a(x)[torch.arange(3),"
                             " torch.arange(3), torch.arange(3)])"),
        ("own_error", "targets.py:own_error: the model failed with ValueError: expected 3 dimensions, got 2"
                      " (targets.py:57 in forward: raise ValueError(f\"expected 3 dimensions, got {x.dim()}\"))"),
        ("loss_error", "targets.py:loss_error: the model failed with NameError: name 'undefined' is not defined"
                       " (targets.py:92 in <lambda>: def loss_error(): return net(), (x(),), lambda out: out.mean() /"
                       " undefined)"),
        ("vector_loss", "targets.py:vector_loss: loss_fn returned float32[64, 64]: expected a scalar tensor"),
        ("float_loss", "targets.py:float_loss: loss_fn returned a float: expected a scalar tensor"),
        ("tuple_loss", "targets.py:tuple_loss: loss_fn returned a tuple: expected a scalar tensor"),
        ("detached_loss", "no training graph was captured: the output depends on no parameter (detached, or under"
                          " torch.no_grad)"),
        ("no_grad", "no training graph was captured: the output depends on no parameter (detached, or under"
                    " torch.no_grad)"),
    ],
)  # fmt: skip
def test_models_that_fail(name: str, message: str, place: Path, caplog: pytest.LogCaptureFixture) -> None:
    target = load(f"targets.py:{name}")
    with pytest.raises(FxApproxError) as caught, running(target):
        explain(target.step, *target.args)
    assert str(caught.value) == message
    assert not caplog.records  # torch's own account of it is left out


def test_two_files_of_one_name(tmp_path: Path) -> None:
    """Each is a module of its own: Dynamo looks up by its module's name what the code of a model reads."""
    names = set()
    for function in ("sin", "tanh"):
        place = tmp_path / function / "same_name.py"
        place.parent.mkdir()
        place.write_text(
            f"import torch\nfrom torch import {function} as F\n\n"
            "class Net(torch.nn.Linear):\n    def forward(self, x):\n        return F(super().forward(x))\n\n"
            "def net(): return Net(4, 4), (torch.randn(2, 4),), torch.sum\n"
        )
        target = load(f"{place}:net")
        assert explain(target.step, *target.args).activations
        names.add(type(target.model).__module__)
        assert sys.modules[type(target.model).__module__].F is getattr(torch, function)
    assert len(names) == 2


def test_errors_of_ours_keep_their_traceback(place: Path) -> None:
    target = load("targets.py:breaks")
    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed, match="ZeroDivisionError"), running(target):
        explain(target.step, *target.args, policy=broken_policy)


def broken_policy(_: fxapprox.Activation) -> None:
    raise ZeroDivisionError


def run(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr(sys, "argv", ["fxapprox", *args])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("command", [("dump",), ("audit",), ("fit", "--memory", "1GiB")])
def test_every_command_says_it_in_a_line(
    command: tuple[str, ...], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *command, "targets.py:own_error") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("fxapprox: ")
    assert "ValueError: expected 3 dimensions, got 2 (targets.py:57 in forward: raise ValueError(" in line


@pytest.mark.parametrize("command", ["dump", "audit"])
def test_nothing_to_store(
    command: str, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, command, "targets.py:stores_nothing") == 2
    line = "targets.py:stores_nothing: nothing is stored for backward: no operator reads an activation again"
    assert capsys.readouterr().err == f"fxapprox: {line}\n"
    assert run(monkeypatch, command, "targets.py:outside") == 2
    assert capsys.readouterr().err == (
        "fxapprox: targets.py:outside: nothing is stored for backward: no operator reads an activation again, or"
        " torch.compile does not capture it\n"
        "graph breaks: 1; what crosses one counts once\n"
        "  the model as a whole\n"
        "    Dynamo does not support RNN, GRU, or LSTM.\n"
    )


def test_graph_breaks_are_listed(place: Path) -> None:
    target = load("targets.py:breaks")
    report = explain(target.step, *target.args)
    assert [each.source for each in report.breaks] == [
        "targets.py:84 in forward: torch._dynamo.graph_break()",
        "targets.py:86 in forward: if h.sum() > 0:",
    ]
    assert report.breaks[1].reason == "Dynamo does not trace a branch on the value of a tensor."
    assert json.loads(report.to_json())["breaks"][1]["source"] == "targets.py:86 in forward: if h.sum() > 0:"
    assert (
        "graph breaks: 2; what crosses one counts once\n  targets.py:84 in forward: torch._dynamo.graph_break()\n"
    ) in "\n".join(line.rstrip() for line in str(report).splitlines())
    whole = load("targets.py:stores_nothing")
    assert explain(whole.step, *whole.args).breaks == ()


def test_what_a_model_prints_is_not_in_the_report(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    talks = """
import torch
from torch import nn

print("importing")

class Talks(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)

    def forward(self, x):
        print("forward")
        return self.b(torch.relu(self.a(x)))

def talks():
    print("building")
    return Talks(), (torch.randn(64, 64),), lambda out: out.mean()
"""
    (place / "talks.py").write_text(talks)
    assert run(monkeypatch, "dump", "talks.py:talks", "--format", "json") == 0
    captured = capsys.readouterr()
    assert json.loads(captured.out)["saved_bytes"]
    assert captured.err.split()[:3] == ["importing", "building", "forward"]


def test_a_name_between_colons_is_no_emoji(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "dump", "x:b:net.py:make") == 2
    assert capsys.readouterr().err == "fxapprox: no such file: x:b:net.py\n"
