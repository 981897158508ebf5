"""Training: `fit` against a bare loop and Lightning, the loader against torchvision's, and peak memory."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness import Bench, Peer, main

if TYPE_CHECKING:
    from collections.abc import Callable

    from dhlab.datasets import Dataset
    from dhlab.models import Model

SAMPLES, SIDE, BATCH, RATE = 256, 96, 16, 1e-3
PICTURES = 400


def measure(bench: Bench) -> None:
    """Time one epoch of a ResNet-18 in float32, reading 256 px JPEG files, and peaks of a 3-D U-Net."""
    import torch

    torch.set_num_threads(bench.arguments.threads)
    torch.set_num_interop_threads(1)
    measure_steps(bench)
    measure_loading(bench)
    measure_memory(bench)


def measure_steps(bench: Bench) -> None:
    """Time an epoch: the same network, samples, order, loss and optimiser; the bare loop has the same losses."""
    import numpy as np

    from dhlab.training import fit

    data = make_samples()
    steps = SAMPLES // BATCH

    def ours() -> list[float]:
        model, losses = make_model(), []
        options: dict[str, Any] = {"augment": False, "class_weights": "none", "precision": "float32", "device": "cpu"}
        options["on_event"] = lambda event: losses.append(event.loss) if event.kind == "step" else None
        fit(model, data, epochs=1, batch_size=BATCH, learning_rate=RATE, progress=False, **options)
        return losses

    def bare() -> Callable[[], list[float]]:
        return lambda: train_bare(data)

    def lightning() -> Callable[[], Any]:
        return make_lightning(data)

    def same(mine: list[float], theirs: list[float]) -> None:
        assert np.allclose(mine, theirs, rtol=0.02), f"the bare loop learns otherwise: {mine}, {theirs}"

    bench.compare(
        f"steps of ResNet-18, {SIDE} px, batch {BATCH}",
        ours,
        [
            Peer("bare loop (limit)", bare, goal=0.97, check=same),
            Peer("Lightning", lightning, goal=1.0, package="lightning"),
        ],
        work=steps,
        unit="steps/s",
    )


def make_samples() -> Dataset:
    """Return pictures in memory whose class shows in their colour."""
    import numpy as np

    from dhlab.datasets import Dataset

    rng = np.random.default_rng(0)
    targets = rng.permutation(np.arange(SAMPLES) % 2)
    images = rng.integers(60, 160, (SAMPLES, SIDE, SIDE, 3))
    images[..., 0] += 40 * targets[:, None, None]
    return Dataset.from_arrays(images.astype(np.uint8), targets, classes=("a", "b"), task="classification")


def make_model() -> Model:
    """Return the network that everyone trains."""
    import dhlab as dh

    return dh.create_model("resnet18", ("a", "b"), tile=SIDE, spacing=1.0)


def train_bare(data: Dataset) -> list[float]:
    """Train as a tutorial would: tensors in memory, AdamW, clipping, the same schedule and order."""
    import torch
    from torch.nn import functional

    from dhlab.training import Loader
    from dhlab.training.optimizing import schedule

    model = make_model().to(memory_format=torch.channels_last).train()
    decaying = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": decaying, "weight_decay": 1e-2}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=RATE)
    images, targets = (torch.from_numpy(part) for part in data.batch(range(len(data))))
    plan, losses = Loader(data, BATCH).plan(0), []
    for number, indices in enumerate(plan):
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule("cosine", number / len(plan))[0]
        picked = torch.from_numpy(indices)
        loss = functional.cross_entropy(model.logits(images[picked]), targets[picked])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        losses.append(loss.item())
    return losses


def make_lightning(data: Dataset) -> Callable[[], Any]:
    """Return the same training as a Lightning user writes it, everything switched off that would cost time."""
    import logging
    import warnings

    import lightning
    import torch
    from torch.nn import functional
    from torch.utils.data import DataLoader, TensorDataset

    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    tensors = TensorDataset(*(torch.from_numpy(part) for part in data.batch(range(len(data)))))
    steps = SAMPLES // BATCH

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = make_model().to(memory_format=torch.channels_last)

        def training_step(self, batch: Any, _number: int) -> Any:
            images, targets = batch
            loss = functional.cross_entropy(self.model.logits(images), targets)
            self.log("loss", loss)
            return loss

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=RATE, weight_decay=1e-2)
            scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
            return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def run() -> Any:
        module = Module()
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            gradient_clip_val=5.0,
        )
        trainer.fit(module, DataLoader(tensors, batch_size=BATCH, shuffle=True))
        return module

    return run


def measure_loading(bench: Bench) -> None:
    """Read JPEG files of 256 px into training batches of uint8, plain and with flips, beside torchvision's."""
    with tempfile.TemporaryDirectory() as folder:
        write_pictures(Path(folder))
        for case, size, flips in (
            ("loader: JPEG files of 256 px", None, False),
            ("loader: the same to 224 px", 224, False),
            ("loader: the same to 224 px, flipped and turned", 224, True),
        ):
            compare_loaders(bench, case, Path(folder), size=size, flips=flips)


def write_pictures(folder: Path) -> None:
    """Write tissue as JPEG files in a folder per class: parts of the real slide."""
    import numpy as np
    import simplejpeg

    import dhlab as dh

    slide = dh.sample("skin-slide")
    rng = np.random.default_rng(0)
    starts = np.stack([rng.integers(0, n - 256, PICTURES) for n in slide.shape], 1)
    for number, tile in enumerate(slide.read_many(starts, (256, 256))):
        place = folder / f"class{number % 2}"
        place.mkdir(exist_ok=True)
        encoded = simplejpeg.encode_jpeg(np.ascontiguousarray(tile), quality=90, colorsubsampling="420")
        (place / f"{number:04}.jpg").write_bytes(encoded)


def compare_loaders(bench: Bench, case: str, folder: Path, *, size: int | None, flips: bool) -> None:
    """Time an epoch of batches of 32, both in one process; ours are uint8 since the model normalises."""
    import numpy as np

    from dhlab.datasets import Dataset
    from dhlab.training import Loader

    options = {} if size is None else {"size": (size, size)}
    data = Dataset.from_folder(folder, **options)

    def ours() -> float:
        loader = Loader(data, 32, augment=0.0 if flips else None)
        return float(np.mean([batch.images.mean() for batch in loader.batches()]))

    def torchvision() -> Callable[[], float]:
        import torch
        from torch.utils.data import DataLoader
        from torchvision import datasets
        from torchvision.transforms import v2

        steps: list[Any] = [v2.ToImage()]
        steps += [] if size is None else [v2.Resize((size, size), antialias=True)]
        steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()] if flips else []
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize([0.5] * 3, [0.25] * 3)]
        files = datasets.ImageFolder(str(folder), v2.Compose(steps))
        loader = DataLoader(files, batch_size=32, shuffle=True)
        return lambda: float(np.mean([images.mean().item() for images, _ in loader])) * 0.25 * 255 + 127.5

    def agree(mine: float, theirs: float) -> None:
        assert abs(mine - theirs) < 2, f"mean grey level {mine} here, {theirs} there"

    bench.compare(
        case,
        ours,
        [Peer("torchvision ImageFolder", torchvision, goal=2.0, package="torchvision", check=agree)],
        work=PICTURES,
        unit="images/s",
    )


def measure_memory(bench: Bench) -> None:
    """Peak memory of a process that trains a 3-D U-Net for two steps, by level of recomputation."""
    peaks = {level: measure_peak(level) for level in ("none", "low", "mid", "full")}
    for level, goal in (("low", 1.05), ("mid", 1.1), ("full", 1.2)):
        bench.record(
            f"peak memory of a 3-D U-Net, activation_checkpointing={level!r}",
            peaks[level],
            peaks["none"],
            peer_name="everything kept",
            unit="MiB",
            goal=goal,
        )


def measure_peak(level: str) -> float:
    """Return what training adds to the memory of a process, in MiB."""
    # Freed memory goes back at once, so that the peak is what is in use.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}
    answer = subprocess.run(
        [sys.executable, __file__, "--peak", level],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    return float(answer.stdout.split()[-1])


def print_peak(level: str) -> None:
    """Train two steps on two volumes of 96³ and print the rise of this process's peak memory in MiB."""
    import numpy as np
    import torch

    import dhlab as dh
    from dhlab.datasets import Dataset
    from dhlab.training import Settings, Trainer

    torch.set_num_threads(1)
    volumes = np.random.default_rng(0).integers(0, 255, (4, 96, 96, 96)).astype(np.uint8)
    data = Dataset.from_arrays(
        volumes, (volumes > 128).astype(np.int64), classes=("a", "b"), task="segmentation", axes="zyx"
    )
    model = dh.create_model("unet", ("a", "b"), tile=96, spacing=1.0, axes="zyx", width=16)
    settings = Settings(
        batch_size=2, precision="float32", augment=False, activation_checkpointing=None if level == "none" else level
    )
    trainer = Trainer(model, data, settings)
    before = read_status("VmRSS")
    for batch in trainer.loader.batches(0):
        trainer.train_batch(batch)
    print(read_status("VmHWM") - before)


def read_status(name: str) -> float:
    """Return a line of the kernel's account of this process, in MiB."""
    text = Path("/proc/self/status").read_text("utf-8")
    return int(text.partition(f"{name}:")[2].split()[0]) / 1024


if __name__ == "__main__":
    if "--peak" in sys.argv:
        print_peak(sys.argv[-1])
    else:
        main(
            "training",
            measure,
            tests=["tests/training/test_trainer.py", "tests/training/test_loading.py"],
            rounds=5,
        )
