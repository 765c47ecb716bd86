# pyright: reportPrivateImportUsage=false
"""Compiling a Dynamo graph whose joint graph is split by us, and Inductor's settings."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch._functorch.config as functorch_config
import torch._inductor.config as inductor_config
from functorch.compile import make_boxed_func
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._inductor import list_mode_options
from torch._inductor.custom_graph_pass import CustomPartitionerFn
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.virtualized import V

from fxapprox.torch_adapter.complex_scatters import complex_scatters_apart
from fxapprox.torch_adapter.custom_ops import lower_hints
from fxapprox.torch_adapter.function_inputs import function_inputs_kept
from fxapprox.torch_adapter.joint import Half, Partition, Partitioner
from fxapprox.torch_adapter.speedups import SWITCH, are_on
from fxapprox.torch_adapter.speedups.switch import sped_up
from fxapprox.torch_adapter.tracing import fake_like, fake_mode, fake_mode_of, lazy_modules, name_part, trace

# Ways to run a convolution on the CPU that are not oneDNN's, of which one has no name in Python.
ATENS_OWN = ("Slow", "Empty", "NnpackSpatial", "Winograd", "Xnnpack")


def prefers_channels_last(gm: fx.GraphModule) -> bool:
    """Whether Inductor lays out the images of this graph channels-last."""
    from torch._inductor.graph import GraphLowering

    return GraphLowering.decide_layout_opt(gm, is_inference=False)


def runs_in_onednn(image: torch.Tensor, weight: torch.Tensor, *geometry: Any) -> bool:
    """Whether ATen gives a convolution of (fake) tensors to oneDNN.

    Args:
        geometry: bias, stride, padding, dilation, whether it is transposed, output padding, groups, sizes of the bias.
    """
    aten: Any = torch._C
    own = [backend for name, backend in vars(aten._ConvBackend).items() if name.startswith(ATENS_OWN)]
    return aten._select_conv_backend(image, weight, *geometry) not in own


class RealizeLimits(NamedTuple):
    """How long an expression may grow before Inductor puts it into memory.

    Attributes:
        reads: loads, of an expression with several readers.
        all_reads: loads, of any expression.
        ops: operations.
    """

    reads: int
    all_reads: int
    ops: int


# At least these, for graphs of ours. A code and what is stored for its group or channel are up to six loads in place of
# one: decoding it again takes less time than writing the value, and less memory. The others are Inductor's own on CPUs;
# under those of GPUs (8, 30), and of CPUs before torch 2.13, a threshold code is written to memory before it is packed.
OUR_LIMITS: dict[Half, RealizeLimits] = {
    "forward": RealizeLimits(reads=0, all_reads=12, ops=50),
    "backward": RealizeLimits(reads=8, all_reads=12, ops=50),
}


def realize_limits(gm: fx.GraphModule, half: Half | None) -> RealizeLimits:
    """Inductor's limits for the device of this graph, as they are set, and for this half of one of ours."""
    values = (node.meta.get("val") for node in gm.graph.nodes)
    on_cpu = next((value.device.type == "cpu" for value in values if isinstance(value, torch.Tensor)), True)
    config: Any = inductor_config
    names = ("realize_cpu_acc_reads_threshold", "realize_cpu_opcount_threshold") if on_cpu else (
        "_realize_acc_reads_threshold_default", "_realize_opcount_threshold_default"
    )  # fmt: skip
    reads, ops = (getattr(config, name, default) for name, default in zip(names, (8, 30), strict=True))
    found = RealizeLimits(
        config.realize_reads_threshold,
        getattr(config, "realize_acc_reads_threshold", None) or reads,
        getattr(config, "realize_opcount_threshold", None) or ops,
    )
    return found if half is None else RealizeLimits(*map(max, zip(found, OUR_LIMITS[half], strict=True)))


def activation_memory_budget(fraction: float) -> contextlib.AbstractContextManager[None]:
    """torch's own budget, for what is compiled inside: recomputation alone."""
    return functorch_config.patch(activation_memory_budget=fraction)


def auto_chunker() -> contextlib.AbstractContextManager[None]:
    """torch's own slices of logits, for what is compiled inside."""
    return inductor_config.patch({"auto_chunker.enable": True})


def fp8_activations() -> contextlib.AbstractContextManager[None]:
    """torch's own codes for what is compiled inside: e4m3 with a scale for each row, for floats of any size."""
    settings = {"quant_type": "torch.float8_e4m3fn", "use_scaling": True, "size_in_mb": 0, "exclude_primals": True,
                "allowed_dtypes": "torch.float32;torch.bfloat16;torch.float16"}  # fmt: skip
    return inductor_config.patch(post_grad_fusion_options={"activation_quantization_aten_pass": settings})


def kernels_in_profiles() -> contextlib.AbstractContextManager[None]:
    """Has Inductor write C++ kernels that PyTorch's profiler sees, each under its own name."""
    return inductor_config.patch({"cpp.enable_kernel_profile": True})


# Inductor would hold what it has read for the last time until something of its size is made.
SETTINGS: dict[str, Any] = {"allow_buffer_reuse": False}


class JointPartitioner(CustomPartitionerFn):
    """A partition function with the identity that Inductor's caches ask for.

    Attributes:
        key: identifies source and options; None keeps the graph out of every cache.
    """

    def __init__(self, run: Partitioner | None, key: str | None) -> None:
        off = key is not None and not are_on() and SWITCH not in key
        self._run, self.key = run, f"{key}-{SWITCH}=0" if off else key

    def __call__(self, gm: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Partition:
        kwargs.pop("compiler", None)
        assert self._run is not None
        return self._run(gm, joint_inputs, **kwargs)

    def uuid(self) -> str | None:
        return self.key

    def __reduce__(self) -> tuple[Any, ...]:
        """For Inductor's cache key, which pickles all settings: what we do is in ``key``, not in the reports so far."""
        return JointPartitioner, (None, self.key or uuid.uuid4().hex)


def compile_inductor(
    gm: fx.GraphModule, inputs: Sequence[Any], partitioner: JointPartitioner, patches: dict[str, Any]
) -> Callable[..., Any]:
    """Compiles a Dynamo graph with Inductor, its joint graph split by ``partitioner``.

    AOTAutograd's cache is left out, because a hit there skips the partitioner and with it the report; Inductor's
    own cache of compiled kernels works as always.
    """
    from torch._inductor.compile_fx import compile_fx

    lower_hints()
    with functorch_config.patch(enable_autograd_cache=False):
        compiled: Any = compile_fx(
            gm, list(inputs), inner_compile=compile_half,
            config_patches={**SETTINGS, **patches, "custom_partitioner_fn": partitioner},
        )  # fmt: skip
    return compiled


def compile_half(*args: Any, **kwargs: Any) -> Any:
    """Inductor, for forward, backward or inference; the former two with our limits for expressions."""
    from torch._inductor.compile_fx import compile_fx_inner

    half: Half = "backward" if kwargs.get("is_backward") else "forward"
    limits = realize_limits(args[0], None if kwargs.get("is_inference") else half)
    patches = {
        "realize_reads_threshold": limits.reads, "realize_acc_reads_threshold": limits.all_reads,
        "realize_opcount_threshold": limits.ops,
    }  # fmt: skip
    with sped_up(half), complex_scatters_apart(), function_inputs_kept(), inductor_config.patch(patches):
        return compile_fx_inner(*args, **kwargs)


def compile_function(
    fn: Callable[..., tuple[torch.Tensor, ...]], values: Sequence[torch.Tensor], half: Half
) -> Callable[..., tuple[torch.Tensor, ...]]:
    """``fn`` over tensors like ``values``, compiled as it would be within a half of ours; bytes are codes."""
    mode = fake_mode()
    fakes = [fake_like(value, mode, value.device) for value in values]
    graph = trace(lambda *given: fn(*given), fakes, mode)  # a method would be traced with itself for an argument
    for node, value in zip(graph.graph.find_nodes(op="placeholder"), values, strict=True):
        if value.dtype is torch.uint8:
            name_part(node, "value", 0)
            node.target = node.name
    graph.recompile()
    lower_hints()
    compiled = compile_half(graph, fakes, is_backward=half == "backward")
    return lambda *args: tuple(compiled(list(args)))


def compile_eager(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    partitioner: JointPartitioner,
    patches: dict[str, Any],
    *,
    backward: Callable[[fx.GraphModule], Callable[..., Any]] = lambda graph: graph.forward,
) -> Callable[..., Any]:
    """Runs the same forward and backward graphs as :func:`compile_inductor`, operator by operator.

    ``backward`` makes the function that runs a backward graph.
    """
    from torch._inductor.compile_fx import partition_fn

    def partition(joint: fx.GraphModule, joint_inputs: Sequence[object], **kwargs: Any) -> Partition:
        mode = fake_mode_of(joint)
        with (
            inductor_config.patch({**patches, "custom_partitioner_fn": partitioner}),
            V.set_fake_mode(mode) if mode is not None else contextlib.nullcontext(),
        ):
            return partition_fn(joint, joint_inputs, **kwargs)

    def run(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        _widen_counters(graph)
        return make_boxed_func(graph.forward)

    def run_backward(graph: fx.GraphModule, _: Sequence[Any]) -> Callable[..., Any]:
        _widen_counters(graph)
        return make_boxed_func(backward(graph))

    with (
        functorch_config.patch(enable_autograd_cache=False),
        lazy_modules(),
    ):
        return aot_autograd(
            fw_compiler=run, bw_compiler=run_backward, partition_fn=partition, decompositions=select_decomp_table,
            keep_inference_input_mutations=True,
        )(gm, list(inputs))  # fmt: skip


def _widen_counters(gm: fx.GraphModule) -> None:
    """Lets decompositions count in integers that torch has kernels for: those of ``eye`` count in unsigned ones."""
    for node in gm.graph.find_nodes(op="call_function", target=torch.ops.prims.iota.default):
        if node.kwargs["dtype"] in (torch.uint16, torch.uint32, torch.uint64):
            node.update_kwarg("dtype", torch.int64)
    gm.recompile()


def inductor_option_names() -> tuple[str, ...]:
    """Names that torch.compile(options=...) takes for Inductor."""
    return tuple(inductor_config.get_config_copy())


def inductor_mode(mode: str | None) -> dict[str, Any]:
    """Inductor's settings for a torch.compile mode."""
    return dict(list_mode_options(mode)) if mode and mode != "default" else {}
