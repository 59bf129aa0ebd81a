"""Does reading images hold a GAN's step up? Images a second of every kind of data, beside what a step can take.

    python benchmarks/data_loading.py

Every worker has a loader of its own. The images pass through the DataModules as training reads them, in batches of 64,
by the training process itself (`num_workers=0`) and by one loader process beside it. What a step takes is that of the
fastest small network in `results/gan_step.json`, if that is there: measured on the same machine, or not to be compared.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image
from recording import RESULTS, command_line, machine_line, markdown_table, save_results

from lightning_decgan.data import DigitsDataModule, FashionMNISTDataModule, ImageDataModule, ImageFolderDataModule

BATCH = 64
_FILES = 2000


def write_photographs(folder: Path, side: int) -> None:
    """JPEG files of smooth colour and some noise, which is what the decoder's time depends on."""
    draw = np.random.default_rng(0)
    for number in range(_FILES):
        coarse = Image.fromarray(draw.integers(0, 256, (8, 8, 3), dtype=np.uint8)).resize((side, side), Image.BICUBIC)
        noisy = np.asarray(coarse, dtype=np.float32) + draw.normal(0, 8, (side, side, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:05}.jpg", quality=90)


def images_a_second(data: ImageDataModule, seconds: float) -> float:
    """How many images a loader gives a second, after its first batch."""
    data.setup("fit")
    count, batches = 0, iter(data.train_dataloader())
    next(batches)
    started = time.perf_counter()
    while (elapsed := time.perf_counter() - started) < seconds:
        batch = next(batches, None)
        if batch is None:
            batches = iter(data.train_dataloader())
            batch = next(batches)
        count += len(batch[0])
    return count / elapsed


def fastest_step(path: Path) -> tuple[str, float] | None:
    """The network of `gan_step.py` that takes most images a second, and how many."""
    if not path.exists():
        return None
    rates = {
        network: max(statistics.median(of_a_way) for of_a_way in ways.values())
        for network, ways in json.loads(path.read_text())["results"].items()
    }
    network = max(rates, key=lambda name: rates[name])
    return network, rates[network]


def main() -> None:
    """Measure all kinds in turns, print the table, keep it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.0, help="of one measurement")
    parser.add_argument("--blocks", type=int, default=3, help="turns that every kind takes")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of results")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for side in (64, 256):
            (Path(folder) / str(side)).mkdir()
            write_photographs(Path(folder) / str(side), side)
        kinds: dict[str, Callable[[int], ImageDataModule]] = {
            "digits, 8 x 8, in memory": lambda n: DigitsDataModule(batch_size=BATCH, num_workers=n),
            "Fashion-MNIST, 28 x 28, in memory": lambda n: FashionMNISTDataModule(batch_size=BATCH, num_workers=n),
            "folder of JPEG, 64 x 64": lambda n: ImageFolderDataModule(
                f"{folder}/64", image_size=64, labels=False, batch_size=BATCH, num_workers=n
            ),
            "folder of JPEG, 256 x 256 to 128": lambda n: ImageFolderDataModule(
                f"{folder}/256", image_size=128, labels=False, batch_size=BATCH, num_workers=n
            ),
        }
        found: dict[str, dict[int, list[float]]] = {kind: {0: [], 1: []} for kind in kinds}
        for block in range(arguments.blocks):
            for kind, make in kinds.items():
                for loaders, rates in found[kind].items():
                    rates.append(images_a_second(make(loaders), arguments.seconds))
            print(f"block {block + 1} of {arguments.blocks}", flush=True)
    rows = [[kind, *(f"{statistics.median(rates):,.0f}" for rates in by.values())] for kind, by in found.items()]
    path = save_results(
        "data_loading", {"seconds": arguments.seconds, "blocks": arguments.blocks}, found, arguments.output
    )
    table = markdown_table(["data", "images/s, by the training process", "by one loader process"], rows)
    step = fastest_step(arguments.output / "gan_step.json") or fastest_step(RESULTS / "gan_step.json")
    beside = "" if step is None else f"\n\nThe fastest step of `gan_step.md`: {step[0]}, {step[1]:.0f} images/s."
    text = f"`{command_line()}`; medians, batches of {BATCH}; {machine_line()}\n\n{table}{beside}\n"
    path.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
