"""Runs a script in several processes that talk to each other, as torchrun does, on this machine and no other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LOCAL = "127.0.0.1"
ENVIRONMENT = {
    "GLOO_SOCKET_IFNAME": "lo",
    "OMP_NUM_THREADS": "1",  # torchrun would set it, with a warning
    "PYTHONPATH": str(ROOT),
    "HF_HUB_OFFLINE": "1",
}


def torchrun(script: str, *arguments: str, processes: int = 2, timeout: float = 240, **environment: str) -> str:
    """What the processes print; fails if one of them fails, or if they have not ended after ``timeout`` seconds."""
    launcher = f"-m torch.distributed.run --standalone --local-addr {LOCAL} --nproc-per-node {processes}".split()
    return python(*launcher, str(ROOT / script), *arguments, timeout=timeout, **environment)


def python(*arguments: str, timeout: float = 240, **environment: str) -> str:
    """What a Python process prints; fails if it fails, or has not ended after ``timeout`` seconds."""
    started = subprocess.Popen(
        [sys.executable, *arguments], env={**os.environ, **ENVIRONMENT, **environment}, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    try:
        output, _ = started.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        raise AssertionError(f"not done after {timeout:.0f} s:\n{_ended(started)}") from None
    assert started.returncode == 0, output
    return output


def _ended(process: subprocess.Popen[str]) -> str:
    """Ends a process; torchrun is asked first, because its processes are in sessions of their own."""
    process.send_signal(signal.SIGTERM)
    try:
        return process.communicate(timeout=60)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return process.communicate()[0]
