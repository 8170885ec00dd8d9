"""Inside the lab: what is in a folder that is root's alone is made reachable for other users.

A checkout, a home and a cache may be anywhere on the host, whoever may enter there. In the lab a
mode changes in memory only.
"""

from __future__ import annotations

import os
from pathlib import Path

ENTER = 0o055


def closed(path: Path | str) -> list[Path]:
    """The folders above it, by name and as links lead, where not everybody may enter."""
    folders = {*Path(path).absolute().parents, *Path(path).resolve().parents}
    return sorted(folder for folder in folders if folder.stat().st_mode & ENTER != ENTER)


def open_to_all(*paths: Path | str) -> None:
    """Everybody may enter the folders above these."""
    for path in paths:
        for folder in closed(path):
            os.chmod(folder, folder.stat().st_mode | ENTER)
