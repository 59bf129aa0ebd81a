"""Lets a torchvision that was built for another torch be imported: for tests, in an environment of its own.

The package index has torchvision for CUDA only; beside a CPU build of torch it cannot register its operators, and so
`import torchvision`, torchmetrics and Lightning fail. Its data sets and transforms are Python and work once the schemas
of two operators exist. Loaded as a plugin, before anything imports Lightning:

    python -m pytest -p tests.torchvision_shim tests/unit/test_torchvision_files.py
"""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("torchvision") is not None:
    import torch

    try:
        import torchvision  # a build that fits needs no help
    except RuntimeError:
        import sys

        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        LIBRARY = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            LIBRARY.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
