"""Computing activations again changes no bit of logits, gradients and statistics, and lowers the peak of memory."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy

import pytest
import torch
from torch import nn

from dhlab.errors import BadValueError
from dhlab.models import Model, create_model
from dhlab.networks import recompute

LEVELS = ("low", "mid", "full")


def train(model: Model, level: str | None, steps: int = 2) -> list[torch.Tensor]:
    """Take some steps and return logits, gradients, weights and all statistics."""
    model.train()
    undo = recompute(model.net, level) if level else None
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    torch.manual_seed(1)
    for _ in range(steps):
        x = torch.rand(2, *model.card.window_shape).mul(255).to(getattr(torch, model.card.dtype))
        logits = model.logits(x)
        optimizer.zero_grad()
        logits.square().mean().backward()
        optimizer.step()
    if undo:
        assert undo.units
        assert any("forward" in m.__dict__ for m in model.modules())
        undo()
    assert not any("forward" in m.__dict__ for m in model.modules())
    return [logits, *(p.grad for p in model.parameters()), *model.state_dict().values(), torch.get_rng_state()]


@pytest.mark.parametrize(
    ("name", "arguments", "levels"),
    [
        ("unet", {"tile": 21, "axes": "zyx", "width": 4, "dropout": 0.3}, LEVELS),
        ("cnn", {"tile": 63, "axes": "ct", "width": 4, "dtype": "float32"}, LEVELS),
        ("resnet18", {"tile": 33}, LEVELS),
        ("timm/efficientnet_b0", {"tile": 33, "dropout": 0.2}, ("mid", "full")),
        ("densenet121", {"tile": 33}, ("full",)),
        ("unet", {"tile": (33, 41), "encoder": "mobilenet_v3_small", "width": 8}, ("full",)),
        ("unet", {"tile": 33, "encoder": "timm/resnet10t", "width": 8}, ("full",)),
    ],
)
def test_everything_stays_bitwise(name: str, arguments: dict, levels: tuple[str, ...]) -> None:
    model = create_model(name, ["a", "b"], spacing=1.0, **arguments)
    plain = train(deepcopy(model), None)
    for level in levels:
        again = train(deepcopy(model), level)
        assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True)), level


def test_batches_are_counted_once() -> None:
    model = create_model("resnet18", ["a"], tile=33, spacing=1.0)
    train(model, "full", steps=3)
    assert {int(m.num_batches_tracked) for m in model.modules() if isinstance(m, nn.BatchNorm2d)} == {3}


def test_a_block_that_ends_well_or_not_leaves_nothing() -> None:
    net = create_model("cnn", ["a"], tile=16, spacing=1.0, width=4).net.train()
    with recompute(net, "full") as at_work:
        net(torch.rand(2, 3, 16, 16)).sum().backward()
        assert at_work.units
    assert not at_work.units
    with pytest.raises(ZeroDivisionError), recompute(net, "full"):
        net(torch.rand(2, 3, 16, 16))
        raise ZeroDivisionError
    assert not any("forward" in m.__dict__ for m in net.modules())
    assert not net._forward_pre_hooks


def test_judging_neither_plans_nor_recomputes() -> None:
    net = create_model("unet", ["a"], tile=16, spacing=1.0, width=4).net
    x = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = net.eval()(x)
        undo = recompute(net, "full")
        assert torch.equal(net(x), expected)
        assert undo.units == ()
    net.train()(x).sum().backward()
    assert undo.units
    with torch.inference_mode():
        net.eval()(x)
    undo()


@pytest.mark.parametrize("when", ["before the first pass", "after it"])
def test_a_copy_runs_its_own_weights(when: str) -> None:
    net = create_model("unet", ["a"], tile=16, spacing=1.0, width=4).net
    x = torch.rand(2, 3, 16, 16)
    undo = recompute(net, "full")
    if when == "after it":
        net(x)
    copy = deepcopy(net)
    with torch.no_grad():
        for parameter in copy.parameters():
            parameter.zero_()
    for _ in range(2):
        assert copy(x).abs().max() == 0
    assert net(x).abs().max() > 0
    undo()


def test_refuses_twice_and_unknown_levels() -> None:
    net = create_model("cnn", ["a"], tile=16, spacing=1.0, width=4).net
    with pytest.raises(BadValueError, match="low, mid, full"):
        recompute(net, "high")
    with recompute(net, "full"), recompute(net, "low"), pytest.raises(BadValueError, match="already"):
        net(torch.rand(2, 3, 16, 16))


@pytest.mark.filterwarnings("ignore")  # the compiler's own
def test_under_a_compiler() -> None:
    model = create_model("unet", ["a"], tile=16, spacing=1.0, width=4, depth=2).train()
    x = torch.randint(0, 256, (2, 16, 16, 3), dtype=torch.uint8)
    found = []
    for compiled in (False, True):
        one = deepcopy(model)
        undo = recompute(one.net, "full") if compiled else None
        (torch.compile(one.logits, backend="eager") if compiled else one.logits)(x).square().mean().backward()
        if undo:
            assert undo.units
            undo()
        found.append([*(p.grad for p in one.parameters()), *one.buffers()])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


class WritesIntoItsInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 64), nn.Linear(64, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x.mul_(0.5)).tanh().sin().cos())


def test_what_writes_into_its_input_is_not_run_again() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), WritesIntoItsInput(), nn.Linear(8, 8))
    x = torch.rand(5, 8)
    net(x).sum().backward()
    expected = [p.grad.clone() for p in net.parameters()]
    net.zero_grad()
    with recompute(net, "full") as at_work:
        net(x).sum().backward()
        assert "1" not in at_work.units
    assert all(torch.equal(p.grad, g) for p, g in zip(net.parameters(), expected, strict=True))


def kept(model: Model, level: str | None) -> int:
    """Return the bytes that the forward pass leaves for the backward pass."""
    sizes: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        undo = recompute(model.net, level) if level else None
        logits = model.train().logits(torch.zeros(2, *model.card.window_shape, dtype=torch.uint8))
    if undo:
        undo()
    del logits
    return sum(sizes.values())


@pytest.mark.parametrize(
    ("name", "arguments"), [("resnet18", {}), ("timm/convnext_atto", {}), ("unet", {"encoder": "resnet18", "width": 8})]
)
def test_every_level_keeps_less(name: str, arguments: dict) -> None:
    model = create_model(name, ["a"], tile=64, spacing=1.0, **arguments)
    sizes = [kept(model, level) for level in (None, *LEVELS)]
    assert sizes == sorted(set(sizes), reverse=True)


PROGRAM = """
import os, torch
from dhlab.models import create_model
from dhlab.networks import recompute
torch.set_num_threads(1)
def status(name):
    return int(open("/proc/self/status").read().partition(name + ":")[2].split()[0]) / 1024
for level in (None, "low", "mid", "full"):
    if os.fork():
        os.wait()
        continue
    net = create_model("unet", ["a", "b"], tile=72, spacing=1.0, axes="zyx").net.train()
    x = torch.rand(2, 1, 72, 72, 72)
    before = status("VmRSS")
    undo = recompute(net, level) if level else None
    net(x).square().mean().backward()
    print(status("VmHWM") - before, flush=True)
    os._exit(0)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="measures in forked processes")
def test_the_peak_of_a_process_falls_with_every_level() -> None:
    # Freed memory goes back at once: what is measured is what is held, not how the allocator hoards.
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    peaks = [float(line) for line in done.stdout.splitlines()]
    print("peak MiB:", dict(zip(("none", *LEVELS), peaks, strict=True)))
    assert peaks == sorted(set(peaks), reverse=True)
    assert peaks[-1] < 0.85 * peaks[0]
