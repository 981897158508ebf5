"""`blend_windows` against MONAI's sliding window, with a network that costs nothing."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

TESTS = ["tests/kernels/test_blend.py"]
SIDE, WINDOW, STEP, CLASSES, BATCH = 2048, 256, 128, 6, 8


def measure(bench: Bench) -> None:
    """Time a picture whose windows overlap by half; MONAI must be given fresh scores, a copy that is subtracted."""
    import torch

    from dhlab.kernels import blend_windows

    places = range(0, SIDE - WINDOW + 1, STEP)
    corners = torch.tensor([(y, x) for y in places for x in places])
    predicted = torch.randn(BATCH, CLASSES, WINDOW, WINDOW)
    batches = [predicted[: len(part)] for part in corners.split(BATCH)]
    picture, classes = torch.empty(CLASSES, SIDE, SIDE), torch.empty(SIDE, SIDE, dtype=torch.uint8)
    fresh = torch.empty_like(predicted)
    size = (SIDE, SIDE)

    def predictor(windows: torch.Tensor) -> torch.Tensor:
        return fresh[: len(windows)].copy_(predicted[: len(windows)])

    def monai(mode: str, **settings: int) -> Callable[[], torch.Tensor]:
        from monai.inferers import SlidingWindowInferer

        image = torch.rand(1, 3, SIDE, SIDE)
        infer = SlidingWindowInferer((WINDOW, WINDOW), BATCH, overlap=0.5, mode=mode, progress=False, **settings)
        return lambda: infer(image, predictor)[0]

    def near(mine: torch.Tensor, theirs: torch.Tensor) -> None:
        torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-6)

    def same(mine: torch.Tensor, theirs: torch.Tensor) -> None:
        assert (mine.long() == theirs.argmax(0)).all()

    work, unit = SIDE**2 / 1e6, "Mpx/s"
    for case, result, out, goal, check in (
        ("float canvas", "scores", picture, 7.0, near),
        ("class map", "classes", classes, 11.0, same),
    ):
        seconds = bench.compare(
            f"{case} {SIDE}², window {WINDOW}, {CLASSES} classes",
            lambda result=result, out=out: blend_windows(batches, corners, size=size, result=result, out=out),
            [
                Peer("MONAI gaussian", lambda: monai("gaussian"), package="monai", check=check),
                Peer("MONAI buffered", lambda: monai("gaussian", buffer_steps=1, buffer_dim=-1), package="monai"),
            ],
            work=work,
            unit=unit,
        )
        if "MONAI gaussian" in seconds:
            copies = _least_seconds(lambda: [predictor(batch) for batch in batches], bench.arguments.rounds)
            own = seconds["MONAI gaussian"] - copies
            bench.record(
                f"{case}, without the peer's copies of scores",
                work / seconds["dhlab"],
                work / own,
                peer_name="MONAI gaussian",
                unit=unit,
                goal=goal,
                package="monai",
            )


def _least_seconds(run: Callable[[], object], rounds: int) -> float:
    seconds = []
    for _ in range(rounds + 1):
        begin = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - begin)
    return min(seconds)
