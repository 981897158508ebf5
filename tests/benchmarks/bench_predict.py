"""From scan to heat map: `predict` against the network alone, a plain loop, and MONAI's sliding window."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness import Bench, Peer, main

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

SHAPE, TILE, OVERLAP, BATCH = (1024, 1536), 256, 0.5, 8


def measure(bench: Bench) -> None:
    """Time one slide in memory, a compact U-Net of four classes, windows of 256 px that overlap by half."""
    import numpy as np
    import torch

    from dhlab.grid import TileGrid
    from dhlab.inference import predict
    from dhlab.models import create_model
    from dhlab.scan import Scan

    torch.set_num_threads(bench.arguments.threads)
    picture = np.random.default_rng(0).integers(0, 256, (*SHAPE, 3)).astype(np.uint8)
    scan = Scan.from_array(picture, "yxc", unit="µm")
    model = create_model("unet", ["a", "b", "c", "d"], tile=TILE, spacing=1.0).eval()
    with torch.no_grad():
        model.net.head.weight.mul_(20)
    starts = TileGrid.cover(scan, TILE, overlap=OVERLAP).starts()

    def ours() -> NDArray[np.uint8]:
        heat = predict(model, scan, overlap=OVERLAP, batch_size=BATCH, device="cpu", progress=False)
        return np.asarray(heat.levels[0])

    def network() -> Callable[[], Any]:
        batches = [torch.from_numpy(scan.read_many(part, (TILE, TILE))) for part in np.array_split(starts, 8)]

        @torch.inference_mode()
        def run() -> None:
            for batch in batches:
                model(batch)

        return run

    def plain_loop() -> Callable[[], Any]:
        @torch.inference_mode()
        def run() -> NDArray[np.uint8]:
            canvas, count = torch.zeros(4, SHAPE[0], SHAPE[1]), torch.zeros(SHAPE)
            for y, x in starts.tolist():
                window = torch.from_numpy(scan.read((y, x), (TILE, TILE)))[None]
                canvas[:, y : y + TILE, x : x + TILE] += model(window)[0]
                count[y : y + TILE, x : x + TILE] += 1
            return (canvas / count * 255).round().byte().numpy()

        return run

    def monai() -> Callable[[], Any]:
        from monai.inferers import sliding_window_inference

        image = torch.from_numpy(picture).movedim(-1, 0)[None]

        def score(windows: torch.Tensor) -> torch.Tensor:
            return model(windows.movedim(1, -1).to(torch.uint8))

        @torch.inference_mode()
        def run() -> NDArray[np.uint8]:
            scores = sliding_window_inference(image.float(), (TILE, TILE), BATCH, score, OVERLAP, mode="gaussian")
            return (scores[0] * 255).round().byte().numpy()

        return run

    def agree(mine: NDArray[np.uint8], theirs: NDArray[np.uint8]) -> None:
        difference = np.abs(mine.astype(int) - theirs)
        assert difference.max() <= 1, f"heat maps differ by up to {difference.max()} grey levels"

    peers = [
        Peer("network alone (limit)", network, goal=0.9),
        Peer("plain loop", plain_loop),
        Peer("MONAI", monai, goal=1.0, package="monai", check=agree),
    ]
    bench.compare("slide to heat map", ours, peers, work=len(starts), unit="tiles/s")


if __name__ == "__main__":
    main("predict", measure, tests=["tests/test_inference.py", "tests/kernels/test_blend.py"], rounds=5)
