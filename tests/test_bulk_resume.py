"""Runs that are stopped: by kill -9, by a full disk, by an error; and outputs that must not be mixed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import PIL.Image
import pyarrow.parquet as pq
import pytest
from conftest import TABLE_ROWS, small_scorer
from test_bulk import score

from imagereward.bulk import output as output_module
from imagereward.bulk.output import Output
from imagereward.errors import OutputError

ROOT = Path(__file__).parents[1]


def stop_after(monkeypatch, parts: int, error=KeyboardInterrupt):
    """Let the writing of the part after these fail."""
    write = Output.write

    def failing(self, index, table):
        if len(self.done()) == parts:
            raise error
        write(self, index, table)

    monkeypatch.setattr(Output, "write", failing)


def keep_parts(monkeypatch):
    """Let a finished run leave its parts behind, as if it had been killed before it removed them."""
    finish = Output.finish

    def finish_only(self, *arguments):
        kept = self.directory.with_name("kept")
        shutil.copytree(self.directory, kept)
        summary = finish(self, *arguments)
        kept.rename(self.directory)
        return summary

    monkeypatch.setattr(Output, "finish", finish_only)


def test_a_run_that_stopped_goes_on_with_what_is_missing(table, models, monkeypatch):
    score(table, models, out="whole.parquet")
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            score(table, models)
    assert not (table / "out.parquet").exists()
    assert len(list((table / "out.parquet.parts").glob("part-*"))) == 2
    written = []
    write = Output.write
    monkeypatch.setattr(Output, "write", lambda *a: written.append(a[1]) or write(*a))
    score(table, models)
    assert written == [2]
    assert (table / "out.parquet").read_bytes() == (table / "whole.parquet").read_bytes()
    assert not (table / "out.parquet.parts").exists()


RUN = """
import sys
import PIL.Image
from imagereward.bulk import score_table
score_table(sys.argv[1], sys.argv[2], sys.argv[3], device="cpu", workers=1, part_rows=2, batch_size=2)
"""


def test_kill_9_at_any_moment_then_resuming_ends_with_the_identical_file(table, models):
    options = {"part_rows": 2, "batch_size": 2}
    score(table, models, out="whole.parquet", **options)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [
        sys.executable,
        "-c",
        RUN,
        str(table / "table.jsonl"),
        str(table / "out.parquet"),
        models["ImageReward"],
    ]
    parts = table / "out.parquet.parts"
    for wanted in (1, 5):  # parts at which to kill; the moment within the next one is whatever it is
        process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        while process.poll() is None and len(list(parts.glob("part-*"))) < wanted:
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (table / "out.parquet").exists()
    assert 5 <= len(list(parts.glob("part-*"))) <= 12
    (parts / ".writing-part-00000011.parquet-1").write_text("half a par")
    score(table, models, **options)
    assert (table / "out.parquet").read_bytes() == (table / "whole.parquet").read_bytes()


HOLD = """
import sys, time
from pathlib import Path
from imagereward.bulk.lock import held
with held(Path(sys.argv[1]), Path("it")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_two_processes_never_write_one_output_and_a_dead_one_is_in_nobodys_way(table, models):
    score(table, models, out="whole.parquet")
    lock = table / "out.parquet.lock"
    other = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(OutputError, match=rf"out\.parquet is being written by process {other.pid} on "):
        score(table, models)
    with pytest.raises(OutputError, match="is being written by"):
        score(table, models, overwrite=True)
    assert not (table / "out.parquet.parts").exists()
    other.kill()
    other.wait()
    assert lock.exists()
    score(table, models)
    assert (table / "out.parquet").read_bytes() == (table / "whole.parquet").read_bytes()
    assert not lock.exists()


def test_an_output_that_another_run_finished_meanwhile_is_not_replaced(table, models, monkeypatch):
    begin = Output.locked

    def late(self):
        self.out.write_text("theirs")
        return begin(self)

    monkeypatch.setattr(Output, "locked", late)
    with pytest.raises(OutputError, match="exists; pass --overwrite"):
        score(table, models)
    assert (table / "out.parquet").read_text() == "theirs"


def test_killed_between_the_output_and_the_removal_of_its_parts_nothing_is_lost(table, models, monkeypatch):
    with monkeypatch.context() as patch:
        keep_parts(patch)
        score(table, models)
    before = (table / "out.parquet").read_bytes()
    assert (table / "out.parquet.parts").exists()
    with pytest.raises(OutputError, match="exists"):
        score(table, models)
    assert not (table / "out.parquet.parts").exists()
    assert (table / "out.parquet").read_bytes() == before


def begun(table, models, monkeypatch, **options):
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            score(table, models, **options)


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"dtype": "float64"}, 'dtype: "float32" there, "float64" here'),
        ({"batch_size": 3}, "batch_size: 4 there, 3 here"),
        ({"part_rows": 4}, "part_rows: 8 there, 4 here"),
        ({"keep": ["generator"]}, "columns"),
    ],
)
def test_parts_of_another_run_are_refused_by_the_keys_that_differ(table, models, monkeypatch, change, key):
    begun(table, models, monkeypatch)
    with pytest.raises(OutputError) as caught:
        score(table, models, **change)
    differing = [line.strip() for line in str(caught.value).splitlines()[1:-1]]
    assert len(differing) == 1
    assert differing[0].startswith(key)
    assert len(list((table / "out.parquet.parts").glob("part-*"))) == 1


def test_other_weights_another_input_and_other_versions_are_other_runs(table, models, monkeypatch, tmp_path):
    model = str(small_scorer("ImageReward", seed=5).save_pretrained(tmp_path / "m"))
    begun(table, {"ImageReward": model}, monkeypatch)

    def differing() -> list[str]:
        with pytest.raises(OutputError) as caught:
            score(table, {"ImageReward": model})
        return [line.strip().split(": ")[0] for line in str(caught.value).splitlines()[1:-1]]

    small_scorer("ImageReward", seed=6).save_pretrained(model)
    assert differing() == [f"weights of {model}"]
    small_scorer("ImageReward", seed=5).save_pretrained(model)
    monkeypatch.setattr("imagereward.bulk.versions.__version__", "9")
    assert differing() == ["version of imagereward"]
    monkeypatch.undo()
    with open(table / "table.jsonl", "a") as stream:
        stream.write("{}\n")
    assert differing() == ["input", "rows"]
    score(table, {"ImageReward": model}, overwrite=True)
    assert not (table / "out.parquet.parts").exists()


def test_an_image_added_to_a_folder_makes_it_another_input(table, models, monkeypatch):
    begun(table, models, monkeypatch, source="images", prompt="a")
    PIL.Image.new("RGB", (9, 9)).save(table / "images/new.png")
    with pytest.raises(OutputError, match="input"):
        score(table, models, source="images", prompt="a")


@contextmanager
def full_disk(monkeypatch, number: int):
    """A context in which the disk is full when file `number`, from 0, is to be written; gives the error."""
    real, calls = os.fsync, iter(range(100))

    def full(descriptor):
        if next(calls) == number:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(output_module.os, "fsync", full)
        with pytest.raises(OutputError, match="No space left on device") as caught:
            yield caught
    assert next(calls) == number + 1  # nothing was written after it


@pytest.mark.parametrize("where", ["part", "output"])
def test_a_full_disk_stops_with_what_was_finished_and_resumes(table, models, monkeypatch, where):
    score(table, models, out="whole.parquet")
    # Files in order: fingerprint, state of the input, three parts, the output.
    with full_disk(monkeypatch, 3 if where == "part" else 5) as caught:
        score(table, models)
    assert "goes on from there" in str(caught.value)
    assert not (table / "out.parquet").exists()
    parts = table / "out.parquet.parts"
    names = {path.name for path in parts.iterdir()}
    assert names == {
        "fingerprint.json",
        "input.json",
        *(f"part-{i:08d}.parquet" for i in range(1 if where == "part" else 3)),
    }
    for path in parts.glob("part-*"):
        assert pq.read_metadata(path).num_rows
    score(table, models)
    assert (table / "out.parquet").read_bytes() == (table / "whole.parquet").read_bytes()


@pytest.mark.parametrize("failing", [5, 6])  # the fingerprint beside the output, the output
def test_an_output_in_its_own_folder_is_no_input_of_the_run_that_goes_on(table, models, monkeypatch, failing):
    given = {"source": "images", "prompt": "a", "out": "images/o.csv", "part_rows": 8}
    score(table, models, **given)
    whole = (table / "images/o.csv").read_bytes()
    with full_disk(monkeypatch, failing):
        score(table, models, **given, overwrite=True)
    score(table, models, **{**given, "out": "images/other.csv"})
    summary, _ = score(table, models, **given, overwrite=True)
    assert (table / "images/o.csv").read_bytes() == whole
    assert summary.rows == len(list((table / "images").glob("*.png")))


def test_an_old_output_among_the_tables_of_a_glob_is_no_input_after_a_full_disk(table, models, monkeypatch):
    given = {"source": "*.jsonl", "out": "o.jsonl", "overwrite": True}
    score(table, models, **given)
    whole = (table / "o.jsonl").read_bytes()
    with full_disk(monkeypatch, 6):
        score(table, models, **given)
    summary, _ = score(table, models, **given)
    assert summary.rows == TABLE_ROWS
    assert (table / "o.jsonl").read_bytes() == whole


def test_parts_made_under_another_limit_of_pixels_are_not_continued(table, models, monkeypatch):
    begun(table, models, monkeypatch)
    monkeypatch.setenv("IMAGEREWARD_MAX_PIXELS", "1000000000")
    with pytest.raises(OutputError, match="max_pixels"):
        score(table, models)


def test_a_directory_in_the_way_keeps_what_is_not_ours(table, models):
    (table / "out.parquet.parts").mkdir()
    (table / "out.parquet.parts/notes.txt").write_text("mine")
    score(table, models)
    assert (table / "out.parquet.parts/notes.txt").read_text() == "mine"


def test_a_part_that_went_missing_or_was_swapped_is_noticed(table, models, monkeypatch):
    begun(table, models, monkeypatch)
    part = table / "out.parquet.parts/part-00000000.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    with pytest.raises(OutputError, match="do not follow at row 0"):
        score(table, models)
    assert not (table / "out.parquet").exists()


def test_an_unreadable_fingerprint_is_no_reason_to_remove_parts(table, models, monkeypatch):
    begun(table, models, monkeypatch)
    (table / "out.parquet.parts/fingerprint.json").write_text(json.dumps("?")[:1])
    with pytest.raises(OutputError, match="parts of another run"):
        score(table, models)
    assert len(list((table / "out.parquet.parts").glob("part-*"))) == 1
