"""How efficient 1 to 256 GPUs are, by a model: a step's time, its gradients' bytes, and published link speeds.

The gradients travel as a ring, within a node and between nodes (Patarasuk and Yuan 2009), while the backward pass still
runs; what is not hidden behind it is lost. Measure your own step (``report.values["samples per second"]`` of `fit`) and
pass it. Run it without arguments to draw the figure of the documentation.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PICTURE = ROOT / "notebooks" / "pictures" / "scaling.png"
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# Megabytes of gradients that come last, when no backward pass is left to hide behind; an assumption, as is the share.
LAST_MB = 16
BACKWARD_SHARE = 2 / 3
HOP_S = 10e-6


@dataclass(frozen=True)
class Links:
    """Speeds as the makers publish them.

    Parameters
    ----------
    name
        What they are called.
    inside
        GB/s of a GPU to the others of its node, one direction.
    between
        GB/s of a node to the others, one direction.
    per_node
        GPUs of a node.
    """

    name: str
    inside: float
    between: float
    per_node: int


LINKS = (
    Links("NVLink 4, 8 × NDR 400 Gb/s", 450, 400, 8),
    Links("NVLink 3, HDR 200 Gb/s", 300, 25, 8),
    Links("PCIe 4, 100 Gb/s Ethernet", 25, 12.5, 4),
    Links("PCIe 4, 25 Gb/s Ethernet", 25, 3.1, 4),
)


def ring_seconds(megabytes: float, members: int, speed: float) -> float:
    """Return how long a ring of members takes to add so much, at GB/s of each."""
    return 2 * (members - 1) * (megabytes / members / 1e3 / speed + HOP_S)


def sum_seconds(megabytes: float, count: int, links: Links) -> float:
    """Return how long the sum over all GPUs takes: within the nodes, then between them."""
    inside = min(count, links.per_node)
    return ring_seconds(megabytes, inside, links.inside) + ring_seconds(megabytes, -(-count // inside), links.between)


def efficiency(step: float, megabytes: float, count: int, links: Links) -> float:
    """Return the share of a GPU's speed that is left among so many, with the same batch for each.

    Parameters
    ----------
    step
        Seconds of a step of one GPU.
    megabytes
        Size of the gradients.
    count
        Number of GPUs.
    links
        What joins them.
    """
    last = sum_seconds(min(LAST_MB, megabytes), count, links)
    hidden = max(0.0, sum_seconds(megabytes, count, links) - last - BACKWARD_SHARE * step)
    return step / (step + last + hidden)


def draw(cases: list[tuple[str, float, float]], target: Path) -> None:
    """Draw a panel for each case (name, seconds of a step, megabytes of gradients)."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(cases), figsize=(4.2 * len(cases), 3.4), sharey=True, layout="constrained")
    for axes, (name, step, megabytes) in zip(panels, cases, strict=True):
        for links in LINKS:
            axes.plot(
                COUNTS, [100 * efficiency(step, megabytes, n, links) for n in COUNTS], marker="o", label=links.name
            )
        axes.set(xscale="log", title=name, xlabel="GPUs", ylim=(0, 103))
        axes.set_xticks(COUNTS, map(str, COUNTS), fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("Efficiency (%)")
    panels[-1].legend(fontsize=8, loc="lower left")
    figure.savefig(target, dpi=110)
    print(target)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--step-ms", type=float, help="a step of one GPU, in milliseconds")
    parser.add_argument("--megabytes", type=float, help="gradients, 4 bytes for each parameter (2 with fp16)")
    arguments = parser.parse_args()
    cases = [
        ("U-Net, 31 M parameters, 120 ms a step", 0.12, 124),
        ("ResNet-50, 26 M parameters, 60 ms a step", 0.06, 102),
    ]
    if arguments.step_ms and arguments.megabytes:
        cases = [("", arguments.step_ms / 1e3, arguments.megabytes)]
    for name, step, megabytes in cases:
        print(f"{name or 'yours'}: {1e3 * step:g} ms a step, {megabytes:g} MB of gradients")
        print(f"{'GPUs':<28}" + "".join(f"{n:>6}" for n in COUNTS))
        for links in LINKS:
            row = "".join(f"{100 * efficiency(step, megabytes, n, links):>5.0f}%" for n in COUNTS)
            print(f"{links.name:<28}{row}")
    if not arguments.step_ms:
        draw(cases, PICTURE)


if __name__ == "__main__":
    main()
