"""How far each form of a kernel is from float64, on real tissue: ``python tests/kernels/error_table.py``.

A table to look at and to quote; the tests beside it guard the bounds, on harder shapes.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

os.environ.setdefault("TRITON_INTERPRET", "1")  # before Triton is imported
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch

import dhlab as dh
from dhlab import augment, kernels
from dhlab.kernels import _cpu

if TYPE_CHECKING:
    from collections.abc import Callable

MEAN, STD = (0.7, 0.55, 0.69), (0.2, 0.25, 0.18)
SIDE, COUNT = 128, 2


def measure() -> list[tuple[str, str, Callable[[], torch.Tensor], torch.Tensor]]:
    """Return name, unit, call and float64 truth of every operation."""
    generator = torch.Generator().manual_seed(0)
    slide = dh.sample("skin-slide")
    grid = dh.TileGrid.cover(slide, SIDE).within(dh.find_tissue(slide), min_share=0.9)
    starts = grid.starts()[:: len(grid) // COUNT][:COUNT]
    tiles = torch.from_numpy(slide.read_many(starts, (SIDE, SIDE)))
    planes = tiles.movedim(-1, 1)
    steps = [augment.Rotate((-20, 20)), augment.Elastic(p=1.0), augment.StainJitter(), augment.ColourJitter()]
    plan = augment.Compose([*steps, augment.GaussianNoise()]).draw(tiles, seed=0, indices=range(COUNT))[0]
    fit = kernels.macenko_fit(tiles)
    preset = kernels.Stains.preset("macenko")
    attention = _attention(generator)
    bag = torch.randn(700, 96, generator=generator)
    logits = 3 * torch.randn(2, 5, 63, 65, generator=generator)
    targets = torch.randint(0, 5, (2, 63, 65), generator=generator)
    terms = kernels.LossTerms()
    normalized = (planes.double() / 255 - _channels(MEAN)) / _channels(STD)
    return [
        ("normalize", "std", lambda: kernels.normalize(tiles, mean=MEAN, std=STD), normalized),
        (
            "augment",
            "light",
            lambda: kernels.augment(tiles, plan),
            kernels.augment_reference(tiles, plan, dtype=torch.float64),
        ),
        (
            "normalize_stain",
            "grey levels",
            lambda: kernels.normalize_stain(planes, preset, channel_axis=1),
            kernels.normalize_stain_reference(planes, kernels.macenko_fit_reference(planes), preset).double(),
        ),
        (
            "separate_stains",
            "density",
            lambda: kernels.separate_stains(planes, fit, channel_axis=1),
            kernels.separate_stains_reference(planes.double() / 255, fit),
        ),
        (
            "filter_bank",
            "of the largest",
            lambda: kernels.filter_bank(planes, channel_axis=1),
            kernels.filter_bank_reference(planes.double()),
        ),
        (
            "attention_pool",
            "of the largest",
            lambda: kernels.attention_pool(bag, attention=attention, precision="float32"),
            kernels.attention_pool(bag.double(), attention=_doubled(attention)),
        ),
        (
            "dice_ce_loss",
            "of the value",
            lambda: kernels.dice_ce_loss(logits, targets),
            kernels.loss_reference(logits.double(), targets, terms),
        ),
        (
            "its gradient",
            "of the largest",
            lambda: _gradient(kernels.dice_ce_loss, logits, targets),
            _gradient(lambda z, y: kernels.loss_reference(z, y, terms), logits.double(), targets),
        ),
    ]


def forms() -> dict[str, tuple[str, str]]:
    """Return the forms that run here: DHLAB_KERNELS and instruction set of each."""
    sets = _cpu.SETS[: _cpu.SETS.index(_cpu.instruction_set()) + 1]
    found = {"PyTorch": ("torch", "base")} | {f"C, {name}": ("cpu", name) for name in sets}
    return found | {"Triton": ("triton", "base")}


def main() -> None:
    """Print the table."""
    names = forms()
    print("| operation | error in | " + " | ".join(names) + " |")
    print("| --- | --- |" + " --- |" * len(names))
    for operation, unit, run, truth in measure():
        cells = []
        for choice, instructions in names.values():
            os.environ["DHLAB_KERNELS"] = choice
            _cpu.instruction_set = lambda chosen=instructions: chosen
            error = (run().double() - truth).abs().max().item()
            relative = truth.abs().max().item() if unit.startswith("of the") else 1
            cells.append(f"{error / relative:.1e}")
        print(f"| {operation} | {unit} | {' | '.join(cells)} |", flush=True)


def _channels(values: tuple[float, ...]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).view(1, -1, 1, 1)


def _attention(generator: torch.Generator) -> kernels.GatedAttention:
    shapes = {"value_weight": (33, 96), "value_bias": (33,), "gate_weight": (33, 96), "gate_bias": (33,)}
    shapes |= {"score_weight": (2, 33), "score_bias": (2,)}
    return kernels.GatedAttention(**{n: 0.2 * torch.randn(s, generator=generator) for n, s in shapes.items()})


def _doubled(attention: kernels.GatedAttention) -> kernels.GatedAttention:
    tensors = {name: value.double() for name, value in vars(attention).items() if value is not None}
    return kernels.GatedAttention(**tensors)


def _gradient(loss: Callable[..., torch.Tensor], logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = logits.clone().requires_grad_()
    loss(logits, targets).backward()
    assert logits.grad is not None
    return logits.grad


if __name__ == "__main__":
    main()
