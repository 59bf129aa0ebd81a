"""torchvision beside a torch that it was not built for, good enough for what is tested here.

The package index has torchvision for CUDA only. Beside the CPU build of torch its compiled operators do not load, and
its import ends at the first one that it looks up. Nothing here calls them, so their schemas are declared, and then the
import goes through: torchvision's Python parts, and torch_fidelity with them, work.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys

import torch

_DECLARED: list[torch.library.Library] = []  # a library that is collected takes its schemas back


def _import_torchvision() -> None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _DECLARED.append(library)
        importlib.import_module("torchvision")


if importlib.util.find_spec("torchvision") is not None:
    _import_torchvision()
