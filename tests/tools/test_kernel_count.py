"""What a layer needs is compiled once, however many layers there are."""

from __future__ import annotations

import pytest

from tools import kernel_count


@pytest.mark.inductor
@pytest.mark.parametrize("network", kernel_count.NETWORKS)
def test_a_deeper_network_has_no_more_kernels(network: str) -> None:
    assert kernel_count.kernels(network, 3, "4") == kernel_count.kernels(network, 2, "4")
