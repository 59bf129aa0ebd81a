"""Images a second of a GAN's training step: the joint simultaneous step beside the step that people write today.

    python benchmarks/gan_step.py
    python benchmarks/gan_step.py --device cuda --precision bf16 --networks dcgan_64 --batch 256

The same networks, loss and optimizers take the same number of steps in four ways, in turns, so that whatever else the
machine does falls on all of them alike. Freed memory is kept for the next step, as
`DecentralizedGANModule` does (`--give-memory-back`: it is not, as with `keep_memory=False` and in a plain program; each
step then pays for its pages, the joint one for the most):

- **usual**: the loop of most tutorials. The discriminator's step on real images and on fakes, each its own batch; then
  the generator's, for which the fakes go through the discriminator again, whose unused gradients are made as well.
- **alternating**: the same order without those gradients (`alternating_step`).
- **simultaneous, cut**: both gradients at one point, the graph cut at the fakes.
- **simultaneous, joint**: one forward and one backward of the discriminator for both players.

Beside the time stands what a step asks for, whatever else the machine does: the operations, one or a few kernels each,
which decide where the networks are so small that a device waits for its orders, and the arithmetic, which decides where
they are large. In brackets: how many times as much the usual step asks for.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from recording import RESULTS, command_line, machine_line, markdown_table, save_results
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from lightning_decgan.gan import (
    DCGANDiscriminator,
    DCGANGenerator,
    Game,
    ResNetDiscriminator,
    ResNetGenerator,
    SAGANDiscriminator,
    SAGANGenerator,
    alternating_step,
    get_loss,
    simultaneous_step,
)
from lightning_decgan.memory import keep_freed_memory
from lightning_decgan.optim import OptimisticAdam

# Presets for two cores, and two in the sizes of their papers.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], nn.Module]]] = {
    "dcgan_28": (partial(DCGANGenerator, image_size=28), partial(DCGANDiscriminator, image_size=28)),
    "dcgan_28_spectral": (
        partial(DCGANGenerator, image_size=28),
        partial(DCGANDiscriminator, image_size=28, spectral_norm=True),
    ),
    "dcgan_32": (
        partial(DCGANGenerator, channels=3, image_size=32),
        partial(DCGANDiscriminator, channels=3, image_size=32),
    ),
    "resnet_32_spectral": (
        partial(ResNetGenerator, width=32),
        partial(ResNetDiscriminator, width=32, norm="spectral"),
    ),
    "sagan_32": (
        partial(SAGANGenerator, image_size=32, width=32),
        partial(SAGANDiscriminator, image_size=32, width=32),
    ),
    "dcgan_64": (
        partial(DCGANGenerator, channels=3, image_size=64, width=128),
        partial(DCGANDiscriminator, channels=3, image_size=64, width=128),
    ),
    "resnet_32_published": (partial(ResNetGenerator, width=256), partial(ResNetDiscriminator, norm="spectral")),
}
SMALL = ("dcgan_28", "dcgan_28_spectral", "dcgan_32", "resnet_32_spectral", "sagan_32")
USUAL = "usual"


class Step(Game):
    """Networks, loss, optimizers and images of one way of stepping."""

    def __init__(self, network: str, arguments: argparse.Namespace, joint: bool) -> None:
        torch.manual_seed(0)
        device = torch.device(arguments.device)
        self.generator, self.discriminator = (make().to(device) for make in NETWORKS[network])
        self.loss = get_loss(arguments.loss)
        self.joint = joint
        self.optimizers = [
            OptimisticAdam(player.parameters(), lr=2e-4, betas=(0.5, 0.9))
            for player in (self.discriminator, self.generator)
        ]
        latent_dim: int = self.generator.latent_dim  # type: ignore[assignment]
        self.latent = torch.randn(arguments.batch, latent_dim, device=device)
        with torch.no_grad():
            self.real = torch.rand_like(self.generator(self.latent)) * 2 - 1

    def discriminator_loss(self, real_logits: Tensor, fake_logits: Tensor) -> Tensor:
        """What `--loss` says."""
        return self.loss.discriminator(real_logits, fake_logits)

    def generator_loss(self, fake_logits: Tensor, *real_logits: Tensor) -> Tensor:
        """What `--loss` says."""
        return self.loss.generator(fake_logits, *real_logits)

    def usual(self) -> None:
        """The step of most tutorials."""
        discriminator_optimizer, generator_optimizer = self.optimizers
        fake = self.generator(self.latent)
        discriminator_optimizer.zero_grad()
        self.discriminator_loss(self.judge(self.real), self.judge(fake.detach())).backward()
        discriminator_optimizer.step()
        generator_optimizer.zero_grad()
        self.generator_loss(self.judge(fake)).backward()
        generator_optimizer.step()

    def alternating(self) -> None:
        """`alternating_step`."""
        alternating_step(self, self.real, self.latent, *self.optimizers)

    def simultaneous(self) -> None:
        """`simultaneous_step`."""
        simultaneous_step(self, self.real, self.latent, *self.optimizers)


FORMS: dict[str, tuple[bool, Callable[[Step], None]]] = {
    USUAL: (False, Step.usual),
    "alternating": (False, Step.alternating),
    "simultaneous, cut": (False, Step.simultaneous),
    "simultaneous, joint": (True, Step.simultaneous),
}


def measure(network: str, arguments: argparse.Namespace) -> dict[str, list[float]]:
    """Images a second of every form in every block: the median step's.

    The forms take one step each in turn, so that whatever else the machine does falls on all of them alike.
    """
    device = torch.device(arguments.device)
    steps = {form: (Step(network, arguments, joint), step) for form, (joint, step) in FORMS.items()}
    rates: dict[str, list[float]] = {form: [] for form in FORMS}
    for block in range(arguments.blocks + 1):  # the first is the warm-up
        seconds: dict[str, list[float]] = {form: [] for form in FORMS}
        for _ in range(arguments.steps):
            for form, (game, step) in steps.items():
                started = _now(device)
                with torch.autocast(
                    # Without its cache, as in Lightning: "usual" would judge by the weights of before its first step.
                    device.type, torch.bfloat16, enabled=arguments.precision == "bf16", cache_enabled=False
                ):  # fmt: skip
                    step(game)
                seconds[form].append(_now(device) - started)
        if block:
            for form, found in seconds.items():
                rates[form].append(arguments.batch / statistics.median(found))
        print(f"{network}: block {block} of {arguments.blocks}", file=sys.stderr, flush=True)
    return rates


@dataclass(frozen=True)
class Demand:
    """What one step asks for.

    Attributes:
        operations: of torch that compute; views and allocations do not.
        flops: floating-point operations of convolutions and matrix products.
    """

    operations: int
    flops: int


class _Counter(TorchDispatchMode):
    """Both counts. `FlopCounterMode`, which has the second, cannot stand `torch.autograd.grad`."""

    operations = 0
    flops = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if func.namespace == "aten" and not func.is_view and name != "detach" and not name.startswith("empty"):
            self.operations += 1
        if formula := flop_registry.get(func.overloadpacket):
            self.flops += formula(*args, **(kwargs or {}), out_val=found)
        return found


def count(network: str, arguments: argparse.Namespace) -> dict[str, Demand]:
    """What a step of every form asks for, once the optimizers have their states.

    These take all weights in one operation, as they do by default on a GPU, where operations count.
    """
    demands: dict[str, Demand] = {}
    for form, (joint, step) in FORMS.items():
        game = Step(network, arguments, joint)
        for group in (group for optimizer in game.optimizers for group in optimizer.param_groups):
            group["foreach"] = True
        step(game)
        with _Counter() as counter:
            step(game)
        demands[form] = Demand(counter.operations, counter.flops)
    return demands


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def row(network: str, form: str, rates: dict[str, list[float]], demands: dict[str, Demand]) -> list[str]:
    """A line of the table; the ratio is the median over blocks of the ratio within a block.

    Behind what it asks for stands the usual step's over its own: the ratio there would be if that alone took time.
    """
    ratios = [mine / usual for mine, usual in zip(rates[form], rates[USUAL], strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    mine, usual = demands[form], demands[USUAL]
    return [
        network, form, f"{statistics.median(rates[form]):.1f}", f"{median:.2f}", f"{low:.2f} - {high:.2f}",
        f"{mine.operations} ({usual.operations / mine.operations:.2f})",
        f"{mine.flops / 1e9:.1f} ({usual.flops / mine.flops:.2f})",
    ]  # fmt: skip


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=SMALL)
    parser.add_argument("--loss", default="non_saturating")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of a form in a block")
    parser.add_argument("--blocks", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["32", "bf16"], default="32")
    parser.add_argument("--give-memory-back", action="store_true", help="leave freed memory to the C library's ways")
    parser.add_argument("--name", default="gan_step", help="of the files of results")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    if arguments.blocks < 2 or min(arguments.steps, arguments.batch) < 1:
        found = f"{arguments.blocks}, {arguments.steps} and {arguments.batch}"
        parser.error(f"--blocks must be at least 2, for quartiles, --steps and --batch at least 1, found {found}")
    kept = not arguments.give_memory_back and keep_freed_memory()
    results = {network: measure(network, arguments) for network in arguments.networks}
    demands = {network: count(network, arguments) for network in arguments.networks}
    rows = [row(network, form, rates, demands[network]) for network, rates in results.items() for form in FORMS]
    columns = ["networks", "step", "images/s", "to usual", "quartiles", "operations", "GFLOP"]
    table = markdown_table(columns, rows)
    settings = {name: value for name, value in vars(arguments).items() if name != "output"} | {"memory_kept": kept}
    path = save_results(arguments.name, settings, results, arguments.output)
    how = f"{arguments.loss} loss, {arguments.batch} images, precision {arguments.precision}, {arguments.device}"
    path.with_suffix(".md").write_text(f"`{command_line()}`; {how}; {machine_line()}\n\n{table}\n")
    print(f"{table}\n\n{path}")


if __name__ == "__main__":
    main()
