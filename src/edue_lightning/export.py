"""Command that exports a trained model for use without this package: to ONNX, torch.export or a MONAI bundle.

python -m edue_lightning.export ckpt=PATH format=onnx|torch_export|monai_bundle output=PATH [overrides]
"""

from __future__ import annotations

from edue_lightning.runtime.startup import imports_of_command, start_process

with imports_of_command(__name__):
    from omegaconf import DictConfig

    from edue_lightning.config.command import command
    from edue_lightning.config.schema import resolved
    from edue_lightning.exporting.run import export

__all__ = ["export", "main"]


@command("export")
def main(config: DictConfig) -> None:
    """Run the command."""
    start_process()
    export(resolved(config))


if __name__ == "__main__":
    # under its own name, not as __main__, so that the processes of launchers can import it
    from edue_lightning.export import main as importable_main

    importable_main()
