"""What Inductor writes for a training step, without running it: for the CPU, and for a GPU that is not there.

The step is traced on the CPU, and split as always. For a GPU, each half is moved then: its fake tensors are said to lie
on a device "cuda", and Inductor is told of an H100. It writes Triton code, of which Triton's own compiler makes machine
code; both need no GPU. Nothing is launched. Fused attention has an operator of its own on each device: it stays.

For "cuda" the triton package is needed (``pip install triton``); a torch that is built for GPUs brings it.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx
from torch._dynamo import device_interface
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor import scheduler
from torch._inductor.codecache import PyCodeCache
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import GraphLowering
from torch._inductor.runtime import triton_helpers
from torch._inductor.virtualized import V
from torch._prims import TensorMeta
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_map

import fxapprox
from fxapprox import torch_adapter as adapter
from fxapprox.torch_adapter import inductor

CUDA = torch.device("cuda", 0)
CAPABILITY = 90
H100 = SimpleNamespace(
    name="H100", major=9, minor=0, multi_processor_count=132, regs_per_multiprocessor=65536, warp_size=32,
    max_threads_per_multi_processor=2048, max_threads_per_block=1024, shared_memory_per_block=49152,
    shared_memory_per_block_optin=232448, shared_memory_per_multiprocessor=233472, L2_cache_size=50 << 20,
    total_memory=80 << 30, gcnArchName="",
)  # fmt: skip
Half = Callable[..., Callable[..., Any]]


@dataclass(frozen=True)
class Kernel:
    """One kernel, Inductor's own or a library's.

    Attributes:
        name: of the buffers that it makes.
        external: whether a library has it (convolution, matrix product).
        read, written: bytes; what it reads twice counts once.
    """

    name: str
    external: bool
    read: int
    written: int


@dataclass(frozen=True)
class Code:
    """What Inductor makes of forward, or of backward.

    Attributes:
        source: the Python module that it writes, with the kernels in it.
        kernels: in the order in which they run.
    """

    source: str
    kernels: tuple[Kernel, ...]


class _Written(Exception):
    """Ends a compilation when the code is there, and a step before it runs."""


def has_triton() -> bool:
    """Whether the triton package is installed."""
    return importlib.util.find_spec("triton") is not None


def written(
    step: Callable[..., Tensor], *args: Tensor, device: str = "cpu", plain: bool = False, **options: Any
) -> list[Code]:
    """The code of forward, and of backward.

    Args:
        step: from inputs to a loss, on the CPU.
        device: "cpu" or "cuda": what the code is for.
        plain: whether it is torch.compile's as it is.
        **options: fxapprox's.
    """
    found: list[Code] = []
    ours = inductor.compile_half
    half = _noting(compile_fx_inner if plain else ours, device, found)

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compile_fx(gm, list(inputs), inner_compile=half)  # type: ignore[arg-type, return-value]

    with ExitStack() as stack:
        stack.enter_context(functorch_config.patch(force_non_lazy_backward_lowering=True, enable_autograd_cache=False))
        stack.enter_context(inductor_config.patch(fx_graph_cache=False, compile_threads=1))
        stack.enter_context(mock.patch.object(inductor, "compile_half", half))
        if device == "cuda":
            stack.enter_context(present())
        torch.compiler.reset()
        options = {"dynamic": False, **options}
        run = torch.compile(step, backend=backend, dynamic=False) if plain else fxapprox.compile(step, **options)
        with suppress(_Written):
            run(*args)
    return found


def _noting(compile_half: Half, device: str, found: list[Code]) -> Half:
    """A compiler of half a graph that keeps the code and gives a function that nobody may call."""

    def note(graph: GraphLowering) -> None:
        wrapper, _ = graph.codegen()
        found.append(Code(wrapper.value, tuple(map(_kernel, graph.scheduler.nodes))))
        raise _Written

    def half(gm: fx.GraphModule, inputs: Sequence[Any], **kwargs: Any) -> Callable[..., Any]:
        if device == "cuda":
            inputs = _moved(gm, inputs)
        with mock.patch.object(GraphLowering, "compile_to_module", note), V.set_fake_mode(adapter.fake_mode_of(gm)):
            try:
                compile_half(gm, inputs, **kwargs)
            except Exception as error:
                if not isinstance(getattr(error, "inner_exception", error), _Written):
                    raise
        return _end

    return half


def _end(*args: Any) -> None:
    raise _Written


def _kernel(node: scheduler.BaseSchedulerNode) -> Kernel:
    external = isinstance(node, scheduler.ExternKernelSchedulerNode)
    return Kernel(node.get_name(), external, node.get_read_buffer_sizes(), node.get_write_buffer_sizes())


def _moved(gm: fx.GraphModule, inputs: Sequence[Any]) -> list[Any]:
    """Says of all that a graph and its functions compute that it lies on the GPU; the inputs there. Mutates them."""
    mode = adapter.fake_mode_of(gm)
    assert mode is not None

    def tensor(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        meta = torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
        return FakeTensor(mode, meta, CUDA)

    def device(value: Any) -> Any:
        return CUDA if isinstance(value, torch.device) else value

    for module in gm.modules():
        if not isinstance(module, fx.GraphModule):
            continue
        for node in module.graph.nodes:
            node.args, node.kwargs = tree_map(device, (node.args, node.kwargs))
            if "val" in node.meta:
                node.meta["val"] = tree_map(tensor, node.meta["val"])
        module.recompile()
    return [tensor(value) for value in inputs]


@contextmanager
def present() -> Iterator[None]:
    """Inductor and Triton believe that there is an H100."""
    from triton.backends.compiler import GPUTarget
    from triton.runtime.driver import driver

    device_interface.init_device_reg()
    told = device_interface.device_interfaces
    active = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", CAPABILITY, 32), get_active_torch_device=lambda: CUDA,
        get_current_device=lambda: 0, get_current_stream=lambda device=None: 0,
    )  # fmt: skip
    order = torch.ops.prims.inductor_force_stride_order.default
    with ExitStack() as stack:
        enter = stack.enter_context
        enter(mock.patch.dict(told, dict.fromkeys(("cuda", "cuda:0"), _Cuda)))
        enter(mock.patch.multiple(
            torch.cuda, get_device_properties=_properties, get_device_capability=lambda device=None: (9, 0),
            current_device=lambda: 0, device_count=lambda: 1,
        ))  # fmt: skip
        enter(mock.patch.object(scheduler, "has_triton", return_value=True))
        # torch asks a device guard that a build for CPUs does not have
        enter(mock.patch.object(order, "prim_meta_impl", lambda x, stride: TensorMeta(x, strides=stride)))
        enter(mock.patch.object(driver, "_active", active))
        yield


def _properties(device: object = None) -> SimpleNamespace:
    return H100


class _Cuda(device_interface.CudaInterface):
    class Worker(device_interface.CudaInterface.Worker):
        current_device = staticmethod(lambda: 0)
        set_device = staticmethod(lambda device: None)
        get_device_properties = staticmethod(_properties)

    current_device = staticmethod(lambda: 0)
    device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    is_bf16_supported = staticmethod(lambda including_emulation=False: True)
    is_triton_capable = staticmethod(lambda device=None: True)
    raise_if_triton_unavailable = staticmethod(lambda device=None: None)
    get_compute_capability = staticmethod(lambda device=None: CAPABILITY)
    get_device_properties = staticmethod(_properties)
    synchronize = staticmethod(lambda device=None: None)


TRITON = re.compile(r"async_compile\.triton\('([^']+)', '''(.*?)''', device_str", re.DOTALL)


def machine_code(code: Code) -> dict[str, int]:
    """{Triton kernel: bytes of the machine code that Triton's compiler makes of it}, in its first configuration.

    Raises: what Triton's compiler does.
    """
    sizes = {}
    there = mock.patch.object(triton_helpers, "set_driver_to_gpu")
    with present(), there, inductor_config.patch(use_static_cuda_launcher=False):
        for name, source in TRITON.findall(code.source):
            kernel = getattr(PyCodeCache.load(source), name)
            result = kernel._precompile_config(kernel.configs[0])
            sizes[name] = len(result.kernel.asm["cubin"])
    return sizes
