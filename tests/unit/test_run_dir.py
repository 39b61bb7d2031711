"""The run folder: nothing overwritten, streams readable before the end, DONE last."""

from __future__ import annotations

import errno
import subprocess
import sys
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from xpyd.entry import without_traceback
from xpyd.lock import InUseError
from xpyd.records import StageRow
from xpyd.run_dir import RowWriter, RunDir
from xpyd.streams import write_parquet


def stage(request_id: int) -> StageRow:
    return StageRow(block=0, request_id=request_id, stage="arrived", rank=0, t_ns=5)


def test_an_existing_folder_is_refused(tmp_path: Path) -> None:
    RunDir.create(tmp_path, "compare", "mine")
    with pytest.raises(FileExistsError, match=r"run\.name"):
        RunDir.create(tmp_path, "compare", "mine")


def test_folders_are_private(tmp_path: Path) -> None:
    assert RunDir.create(tmp_path, "compare", None).path.stat().st_mode & 0o077 == 0


def test_only_a_folder_in_which_nothing_was_measured_is_dropped(tmp_path: Path) -> None:
    refused, measured, ended = (RunDir.create(tmp_path, "serve", name) for name in ("refused", "measured", "ended"))
    with RowWriter(measured, rank=1) as writer:
        writer.write(stage(1))
    ended.finish()
    with refused.lock(), pytest.raises(InUseError):
        refused.drop_if_empty()
    assert [folder.drop_if_empty() for folder in (refused, measured, ended)] == [True, False, False]
    assert [folder.path.exists() for folder in (refused, measured, ended)] == [False, True, True]


def test_flushed_rows_are_readable_while_the_run_goes_on(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "compare", "r")
    rows = RowWriter(run_dir, rank=3)
    rows.write(stage(7))
    rows.flush()
    with pa.OSFile(str(run_dir.path / "streams/stages.attempt0.rank3.arrow")) as file:
        batch = pa.ipc.open_stream(file).read_next_batch()
    assert batch.to_pylist()[0]["request_id"] == 7
    rows.close()


def test_finish_merges_ranks_and_writes_done_last(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "compare", "r")
    for rank in (1, 2):
        with RowWriter(run_dir, rank) as rows:
            rows.write(stage(rank))
    assert not run_dir.done
    run_dir.finish()
    assert run_dir.done
    assert sorted(pq.read_table(run_dir.path / "stages.parquet")["request_id"].to_pylist()) == [1, 2]


def test_a_full_disk_is_said_and_a_fault_of_the_code_keeps_its_traceback(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "compare", "mine")
    said = without_traceback(OSError(errno.ENOSPC, "Error writing bytes to file"), run_dir)
    assert said is not None
    assert said.startswith(f"No space left on device: {run_dir.path} cannot be written")
    assert said.endswith("run.name=mine run.resume=true")
    assert without_traceback(FileNotFoundError(errno.ENOENT, "no such file"), run_dir) is None


def test_a_rank_does_other_things_while_a_slow_file_system_takes_its_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced, looks = threading.Event(), list[bool]()
    monkeypatch.setattr("os.fsync", lambda number: synced.wait(30))

    def meanwhile() -> None:
        looks.append(synced.is_set())
        if len(looks) == 3:
            synced.set()

    with RowWriter(RunDir.create(tmp_path, "serve", "slow"), 1) as rows:
        rows.write(stage(7))
        rows.sync(meanwhile)
        assert looks[:3] == [False] * 3

        def full(number: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space left"):
            rows.sync()


def test_muted_rows_are_dropped_or_kept_for_who_wants_them(tmp_path: Path) -> None:
    run_dir = RunDir.create(tmp_path, "compare", "r")
    with RowWriter(run_dir, 1) as rows:
        rows.muted = True
        rows.write(stage(1))
        rows.overheard = []
        rows.write(stage(2))
        assert rows.overheard == [stage(2)]
    run_dir.finish()
    assert not (run_dir.path / "stages.parquet").exists()


def test_a_folder_in_use_is_refused_until_its_process_is_gone(tmp_path: Path) -> None:
    holder = "from pathlib import Path; from xpyd.run_dir import RunDir\n"
    holder += f"with RunDir(Path({str(tmp_path)!r})).lock(): print('held', flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", holder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    with pytest.raises(InUseError, match=rf'in use by {{.*"pid": {child.pid}.*wait until that has ended'):
        RunDir(tmp_path).lock().__enter__()
    child.kill()
    child.communicate()
    with RunDir(tmp_path).lock():
        pass


def test_stamps_are_kept_by_their_differences(tmp_path: Path) -> None:
    stamps = [10**18 + 5_000_000 * index for index in range(10_000)]
    rows = pa.table({"t_ns": stamps, "rank": [1] * len(stamps)})
    write_parquet(rows, tmp_path / "x.parquet")
    assert pq.read_table(tmp_path / "x.parquet").equals(rows)
    assert (tmp_path / "x.parquet").stat().st_size < 8 * len(stamps) / 4
