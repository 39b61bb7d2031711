"""Writes the archive that Linux unpacks as its first file system: cpio's newc format, which no module of Python knows.

Format: Documentation/driver-api/early-userspace/buffer-format.rst of the kernel. All files belong to root, with no
date, so that equal content gives an equal archive.
"""

from __future__ import annotations

import os
import stat
from io import BytesIO
from pathlib import Path

MAGIC = "070701"
TRAILER = "TRAILER!!!"
ALIGNMENT = 4


def archive(folder: Path) -> bytes:
    """Folders, files and symbolic links below ``folder``, in the order of their names."""
    out = BytesIO()
    for number, path in enumerate(sorted(folder.rglob("*")), start=1):
        mode = path.lstat().st_mode
        if stat.S_ISLNK(mode):
            content = os.fsencode(os.readlink(path))
        else:
            content = path.read_bytes() if stat.S_ISREG(mode) else b""
        _entry(out, str(path.relative_to(folder)), content, mode, number)
    _entry(out, TRAILER, b"", 0, 0)
    return out.getvalue()


def _entry(out: BytesIO, name: str, content: bytes, mode: int, inode: int) -> None:
    encoded = os.fsencode(name) + b"\0"
    owner, group, num_links, date, devices = 0, 0, 1, 0, (0, 0, 0, 0)
    fields = (inode, mode, owner, group, num_links, date, len(content), *devices, len(encoded), 0)
    out.write(MAGIC.encode() + b"".join(b"%08X" % field for field in fields))
    for part in (encoded, content):
        out.write(part)
        out.write(bytes(-out.tell() % ALIGNMENT))
