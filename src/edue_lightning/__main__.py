"""The console script: `edue COMMAND ...` does what `python -m edue_lightning.COMMAND ...` does."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from edue_lightning import __version__
from edue_lightning.runtime.startup import imports_of_command

COMMANDS = {
    "check": "inspect a data set: what it holds, and everything that is wrong with it",
    "train": "train a method on a data set, and measure it",
    "evaluate": "measure a checkpoint, or the predictions of any model",
    "predict": "write masks, disagreement maps and the list of cases to review, for new images",
    "report": "compare all runs below a folder",
    "convert": "write any data set as a folder with a manifest",
    "export": "export a model as ONNX, as a program of torch.export, or as a MONAI bundle",
}
"""Purpose of each command, by its name."""


def usage() -> str:
    """Return the text of `edue --help`."""
    lines = [f"  {name:<9} {text}" for name, text in COMMANDS.items()]
    return "\n".join(["usage: edue COMMAND [OVERRIDE ...]", "", *lines, "", "edue COMMAND --help shows its options."])


def main() -> None:
    """Run the command that the first argument names, with the arguments after it."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
    elif name == "--version":
        print(f"edue-lightning {__version__}")
    elif name in COMMANDS:
        _import_from_working_directory()
        sys.argv[:] = [f"{sys.argv[0]} {name}", *sys.argv[2:]]
        with imports_of_command("__main__"):
            command = import_module(f"edue_lightning.{name}")
        command.main()
    else:
        print(f"error: unknown command {name!r}\n\n{usage()}", file=sys.stderr)
        sys.exit(2)


def _import_from_working_directory() -> None:
    """Let users' own packages be imported from the working directory, as `python -m` does and a script does not."""
    here = str(Path.cwd())
    if here not in sys.path and not sys.flags.safe_path:
        sys.path.insert(0, here)


if __name__ == "__main__":
    main()
