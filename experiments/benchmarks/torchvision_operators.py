"""Let torchvision be imported where its compiled operators do not load, as those of its usual wheel beside a CPU torch.

To be imported first: whatever imports torchmetrics imports torchvision where that is installed. No operator of it is
called here, but its Python part wants to know that two of them exist.
"""

from __future__ import annotations

import importlib.util
import sys

import torch

if importlib.util.find_spec("torchvision") is not None:
    try:
        importlib.import_module("torchvision")
    except RuntimeError:
        for operator in ("nms", "qnms"):
            torch.library.define(f"torchvision::{operator}", "(Tensor boxes, Tensor scores, float threshold) -> Tensor")
        # what was imported before the error must be imported anew
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
