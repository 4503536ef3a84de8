"""Import of torchvision where its compiled operators do not load, as with its usual wheel and a torch for the CPU.

Import it first, because torchmetrics imports torchvision if it is installed. No operator of torchvision is called here,
but its Python code requires that two of them exist.
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
        # modules imported before the error must be imported again
        for module in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[module]
