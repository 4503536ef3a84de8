"""Files that a table names by their paths."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from edue_lightning.data.dicom_series import holds_dicom
from edue_lightning.data.images import ImageError
from edue_lightning.data.listing import DEEPEST


class NamedFiles:
    """The files of a table's folder, as the table names them.

    A table is text that may come from anybody, so its paths must not leave the folder: `..` is refused, and absolute
    paths are taken only if they lead into the folder, or to where a link in the folder leads. Links themselves, such as
    those of DVC and git-annex, are the user's own and are followed wherever they lead.

    Args:
        folder: folder of the table.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()

    def locate(self, name: str) -> Path:
        """Return the path of a file, or of a folder with a DICOM series.

        Raises:
            ImageError: if the path leaves the folder, or the file does not exist.
        """
        named = PurePosixPath(name.replace("\\", "/"))
        path = self.folder / named
        try:
            outside = bool(PureWindowsPath(name).drive) or ".." in named.parts
            outside = outside or (named.is_absolute() and not self._is_linked(path))
            found = not outside and (path.is_file() or holds_dicom(path))
            broken = not outside and path.is_symlink() and not path.exists()
            is_folder = not outside and path.is_dir()
        # a circle of links, a name too long or with characters that no name has
        except (OSError, RuntimeError, ValueError):
            outside = found = broken = is_folder = False
        if outside:
            raise ImageError("leaves the manifest's folder; move or link the file there, and write its path from there")
        if broken:
            raise ImageError("is a link that leads nowhere; fetch what it points to")
        if not found and is_folder:
            raise ImageError("is a folder without DICOM files; name a file, or write slices without a preamble anew")
        if not found:
            raise ImageError("not found; add it, or correct its path in the manifest")
        return path

    def _is_linked(self, path: Path) -> bool:
        """Return whether an absolute path leads into the folder, or to where a link in it leads."""
        resolved = path.resolve()
        return (
            path.is_relative_to(self.folder)
            or resolved.is_relative_to(self.folder)
            or any(resolved.is_relative_to(target) for target in self._link_targets)
        )

    @cached_property
    def _link_targets(self) -> frozenset[Path]:
        targets = set()
        for here, subfolders, files in os.walk(self.folder):
            if len(Path(here).relative_to(self.folder).parts) >= DEEPEST:
                subfolders.clear()
            for name in (*subfolders, *files):
                link = Path(here, name)
                if link.is_symlink() and link.exists():
                    targets.add(link.resolve())
        # a link to a folder above this one would allow everything there
        return frozenset(target for target in targets if not self.folder.is_relative_to(target))
