"""What several workers drop together is what one process drops."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dhlab.training.dropout import SharedDropout


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("layer", [nn.Dropout(0.4), nn.Dropout(0.4, inplace=True), nn.Dropout2d(0.5)])
def test_shares_are_rows_of_the_whole(workers, interleaved, layer):
    whole = torch.rand(7, 6, 5, 3) + 1
    order = torch.channels_last if interleaved else torch.contiguous_format
    torch.manual_seed(11)
    expected = layer(whole.clone(memory_format=order))
    for rank in range(workers):
        rows = slice(rank, None, workers)
        torch.manual_seed(11)
        with SharedDropout(rows, 7):
            assert torch.allclose(layer(whole[rows].clone(memory_format=order)), expected[rows])


def test_stochastic_depth_is_shared_and_the_rest_passes():
    depth = pytest.importorskip("torchvision.ops").StochasticDepth(0.5, "row")
    whole = torch.rand(9, 4, 2, 2) + 1
    torch.manual_seed(5)
    expected = depth(whole)
    torch.manual_seed(5)
    with SharedDropout(slice(1, None, 2), 9):
        assert torch.allclose(depth(whole[1::2]), expected[1::2])
        assert torch.equal(whole[1::2] @ torch.eye(2), whole[1::2])
