"""Segmentation losses, forward and backward, against MONAI and a lean form that `torch.compile` fuses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness import Bench, Peer

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

TESTS = ["tests/kernels/test_losses.py"]
BATCH, CLASSES, SIDE = 4, 6, 512


def measure(bench: Bench) -> None:
    """Time logits float32 and labels uint8, what a training step does: the loss and the gradient of the logits."""
    import torch

    from dhlab.kernels import dice_ce_loss, focal_tversky_loss

    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(BATCH, CLASSES, SIDE, SIDE, generator=generator).requires_grad_()
    labels = torch.randint(0, CLASSES, (BATCH, SIDE, SIDE), generator=generator)
    narrow = labels.to(torch.uint8)

    def step(loss: Callable[[Tensor, Tensor], Tensor], targets: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            value = loss(logits, targets)
            return value.detach(), torch.autograd.grad(value, logits)[0]

        return run

    def lean(logits: Tensor, labels: Tensor) -> Tensor:
        chance, surprise = logits.softmax(1), logits.log_softmax(1)
        truth = torch.nn.functional.one_hot(labels, CLASSES).permute(0, 3, 1, 2).float()
        both = (chance * truth).sum((2, 3))
        dice = 1 - (2 * both + 1e-5) / (chance.sum((2, 3)) + truth.sum((2, 3)) + 1e-5)
        return dice.mean() - (surprise * truth).sum(1).mean()

    def monai(name: str, **options: Any) -> Callable[[], Callable[[], tuple[Tensor, Tensor]]]:
        def make() -> Callable[[], tuple[Tensor, Tensor]]:
            import monai.losses

            return step(getattr(monai.losses, name)(**options), labels[:, None])

        return make

    def agree(mine: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor]) -> None:
        torch.testing.assert_close(mine[0], theirs[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(mine[1], theirs[1], rtol=1e-3, atol=1e-9)

    def compiled() -> Callable[[], tuple[Tensor, Tensor]]:
        return step(torch.compile(lean), labels)

    softmax = {"softmax": True, "to_onehot_y": True}
    size = {"work": BATCH * SIDE**2 / 1e6, "unit": "Mpx/s"}
    bench.compare(
        f"Dice + cross-entropy, {BATCH} × {CLASSES} × {SIDE}²",
        step(dice_ce_loss, narrow),
        [
            Peer("MONAI DiceCE", monai("DiceCELoss", **softmax), goal=12, package="monai", check=agree),
            Peer("torch.compile", compiled, goal=8, package="torch", check=agree),
            Peer("torch eager", lambda: step(lean, labels), package="torch", check=agree),
        ],
        **size,
    )

    def dice_focal(logits: Tensor, targets: Tensor) -> Tensor:
        return focal_tversky_loss(
            logits, targets, alpha=0.5, beta=0.5, exponent=1, focal_weight=1, smooth=(0.5e-5, 0.5e-5)
        )

    # MONAI's focal term is that of the sigmoid even here, so that the values differ; the tests compare term by term.
    bench.compare(
        f"Dice + focal, {BATCH} × {CLASSES} × {SIDE}²",
        step(dice_focal, narrow),
        [Peer("MONAI DiceFocal", monai("DiceFocalLoss", **softmax), goal=30, package="monai")],
        **size,
    )
