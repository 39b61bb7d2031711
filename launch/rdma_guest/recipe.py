"""What the guest is made of: Debian packages, kernel modules, init; and where the image made of them is kept. Pure.

The image is a kernel and an initramfs. Everything else, the Python and the checkout under test included, is this
machine's own root folder, which the guest sees read-only: what is tested there is what is installed here. Only
rdma-core comes from packages of its own, since installing it would change what UCX and nixl find on this machine.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent


class GuestError(RuntimeError):
    """The guest cannot be built or run; the message says why and what to do."""


@dataclass(frozen=True)
class Recipe:
    """``kernel``: a package that depends on the kernel's; ``modules`` are loaded in order, each after what it needs."""

    kernel: str = "linux-image-amd64"
    packages: tuple[str, ...] = (
        "busybox-static",
        "libibverbs1",
        "ibverbs-providers",
        "ibverbs-utils",
        "libnl-3-200",
        "libnl-route-3-200",
    )
    modules: tuple[str, ...] = (
        "virtio_pci",
        "virtio_console",
        "9pnet_virtio",
        "9p",
        "overlay",
        "veth",
        "crc32_generic",
        "rdma_rxe",
        "ib_uverbs",
    )
    init: str = (HERE / "init.sh").read_text()

    def digest(self) -> str:
        """Changes with any ingredient, and with the code that puts them together."""
        code = "".join((HERE / name).read_text() for name in ("image.py", "cpio.py"))
        text = "\n".join((self.kernel, *self.packages, *self.modules, self.init, code))
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def cache_root() -> Path:
    """Where images are kept: outside the checkout, as other tools' caches are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xpyd" / "rdma_guest"
