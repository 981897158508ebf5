"""`normalize` against what a user writes, in PyTorch and in torchvision."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

TESTS = ["tests/kernels/test_normalize.py"]
MEAN, STD, BATCH, SIDE = (0.7, 0.55, 0.69), (0.2, 0.25, 0.18), 32, 256


def measure(bench: Bench) -> None:
    """Time a batch of RGB tiles, bytes next to one another to float32 channels apart, into memory that is reused."""
    import torch

    from dhlab.kernels import normalize

    images = torch.randint(0, 256, (BATCH, SIDE, SIDE, 3), dtype=torch.uint8)
    out = torch.empty(BATCH, 3, SIDE, SIDE)

    def eager() -> Callable[[], torch.Tensor]:
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (MEAN, STD))
        return lambda: (images.permute(0, 3, 1, 2).float().div_(255) - mean) / std

    def torchvision() -> Callable[[], torch.Tensor]:
        from torchvision.transforms.v2 import Compose, Normalize, ToDtype

        steps = Compose([ToDtype(torch.float32, scale=True), Normalize(MEAN, STD)])
        return lambda: steps(images.permute(0, 3, 1, 2))

    def agree(mine: torch.Tensor, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)

    bench.compare(
        f"normalize {BATCH} × {SIDE}²",
        lambda: normalize(images, mean=MEAN, std=STD, out=out),
        [
            Peer("torch eager", eager, package="torch", check=agree),
            Peer("torchvision v2", torchvision, package="torchvision", check=agree),
        ],
        work=BATCH * SIDE**2 / 1e6,
        unit="Mpx/s",
    )
