"""Inputs and outputs that get in each other's way: edits during a run, one file as both, several writers."""

import errno
import json
import os
import resource
import tarfile
from pathlib import Path

import PIL.Image
import pyarrow.parquet as pq
import pytest
from test_bulk import read_lines, score, write_lines
from test_bulk_resume import begun, keep_parts

from imagereward.bulk import score_table
from imagereward.bulk.lock import held
from imagereward.bulk.output import Output
from imagereward.errors import InputError, OutputError


def edit_after(monkeypatch, parts: int, edit):
    """Call `edit` once this many parts are written."""
    write, done = Output.write, []

    def writing(self, index, table):
        write(self, index, table)
        done.append(index)
        if len(done) == parts:
            edit()

    monkeypatch.setattr(Output, "write", writing)


def same_size_and_time(path: Path, change) -> None:
    """Let `change` edit a file, and set its time back."""
    status = path.stat()
    change(path)
    assert path.stat().st_size == status.st_size
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def swap_words(path: Path) -> None:
    text = path.read_text()
    assert "bicycle" in text
    path.write_text(text.replace("bicycle", "unicorn"))


def insert_first(path: Path) -> None:
    path.write_text(path.read_text().splitlines(keepends=True)[0] + path.read_text())


def replace_whole(path: Path) -> None:
    copy = path.with_suffix(".new")
    copy.write_bytes(path.read_bytes())
    os.utime(copy, ns=(path.stat().st_atime_ns, path.stat().st_mtime_ns))
    copy.replace(path)


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize(
    "edit",
    [
        insert_first,
        lambda path: path.write_text("\n".join(path.read_text().splitlines()[:-1])),
        lambda path: same_size_and_time(path, swap_words),
        replace_whole,
        Path.unlink,
    ],
    ids=["inserted", "cut", "same size and time", "replaced", "removed"],
)
def test_an_input_that_changes_during_a_run_is_an_error(table, models, monkeypatch, edit, parts):
    path = table / "table.jsonl"
    edit_after(monkeypatch, parts, lambda: edit(path))
    with pytest.raises(InputError, match=r"table\.jsonl changed while it was read"):
        score(table, models)
    assert not (table / "out.parquet").exists()


def test_a_picture_that_comes_or_changes_during_a_run_over_a_folder_is_an_error(table, models, monkeypatch):
    picture = table / "images/0.png"
    with monkeypatch.context() as patch:
        edit_after(patch, 1, lambda: PIL.Image.new("RGB", (9, 9)).save(table / "images/new.png"))
        with pytest.raises(InputError, match="images changed while it was read"):
            score(table, models, source="images", prompt="a")
    edit_after(
        monkeypatch, 1, lambda: same_size_and_time(picture, lambda path: path.write_bytes(path.read_bytes()))
    )
    with pytest.raises(InputError, match="images changed while it was read"):
        score(table, models, source="images", prompt="a", overwrite=True)


def test_an_edit_between_runs_that_keeps_size_and_time_is_noticed(table, models, monkeypatch):
    begun(table, models, monkeypatch)
    same_size_and_time(table / "table.jsonl", swap_words)
    with pytest.raises(OutputError, match="rows from 0 on, though size and time are the same"):
        score(table, models)
    summary, rows = score(table, models, overwrite=True)
    assert "unicorn" in rows[0]["prompt"]
    assert summary.failed == 0


def test_touching_an_input_without_a_change_of_its_rows_stops_no_resuming(table, models, monkeypatch):
    score(table, models, out="whole.parquet")
    begun(table, models, monkeypatch)
    same_size_and_time(table / "table.jsonl", lambda path: path.chmod(0o640))
    replace_whole(table / "table.jsonl")
    score(table, models)
    assert (table / "out.parquet").read_bytes() == (table / "whole.parquet").read_bytes()


def test_a_folder_renamed_between_runs_is_noticed(table, models, monkeypatch):
    (table / "pics/a").mkdir(parents=True)
    for place in range(4):
        PIL.Image.new("RGB", (40, 40), (60 * place, 0, 0)).save(table / f"pics/a/{place}.png")
    options = {"source": "pics", "prompt": "a", "part_rows": 2}
    begun(table, models, monkeypatch, **options)
    (table / "pics/a").rename(table / "pics/b")
    with pytest.raises((InputError, OutputError)):
        score(table, models, **options)


@pytest.mark.parametrize("source", ["images", "s.tar"])
def test_a_picture_swapped_between_runs_with_size_and_time_kept_is_noticed(
    table, models, monkeypatch, source
):
    for place, colour in enumerate(("red", "blue", "green", "yellow")):
        PIL.Image.new("RGB", (40, 40), colour).save(table / f"images/{place}.bmp")
    with tarfile.open(table / "s.tar", "w") as archive:
        for path in sorted((table / "images").glob("*.bmp")):
            archive.add(path, path.name)

    def swap(path: Path) -> None:
        data, red = path.read_bytes(), b"\x00\x00\xff"
        path.write_bytes(data.replace(red, b"\xff\xff\xff"))

    options = {"source": source, "prompt": "a", "part_rows": 2}
    begun(table, models, monkeypatch, **options)
    (table / source / "0.bmp" if source == "images" else table / source).chmod(0o600)
    with monkeypatch.context() as patch:
        patch.setattr(Output, "finish", lambda *_: None)
        score_only(table, models, **options)  # touched, but unchanged: the run goes on
    same_size_and_time(table / source / "0.bmp" if source == "images" else table / source, swap)
    with pytest.raises(OutputError, match="rows from 0 on, though size and time are the same"):
        score(table, models, **options)
    _, rows = score(table, models, **options, overwrite=True)
    _, fresh = score(table, models, **options, out="fresh.parquet")
    assert rows == fresh


def test_a_caption_edited_between_runs_with_size_and_time_kept_is_noticed(table, models, monkeypatch):
    for path in (table / "images").glob("*.png"):
        path.with_suffix(".txt").write_text("a bicycle")
    begun(table, models, monkeypatch, source="images")
    same_size_and_time(table / "images/0.txt", swap_words)
    with pytest.raises(OutputError, match="rows from 0 on"):
        score(table, models, source="images")
    _, rows = score(table, models, source="images", overwrite=True)
    assert [row["prompt"] for row in rows].count("a unicorn") == 1


def link(kind: str, path: Path, to: Path) -> Path:
    {"symlink": path.symlink_to, "hard link": path.hardlink_to}[kind](to)
    return path


def test_an_output_that_is_the_input_is_refused(table, models):
    before = (table / "table.jsonl").read_bytes()
    names = ["table.jsonl", "images/../table.jsonl"]
    names += [link("symlink", table / "soft.jsonl", table / "table.jsonl").name]
    names += [link("hard link", table / "hard.jsonl", table / "table.jsonl").name]
    (table / "folder").symlink_to(table)
    names += ["folder/table.jsonl"]
    for name in names:
        with pytest.raises(InputError, match="is part of the input"):
            score(table, models, out=name, overwrite=True)
    with pytest.raises(InputError, match="is part of the input"):
        score(table, models, source="*.jsonl", out="table.jsonl", overwrite=True)
    assert (table / "table.jsonl").read_bytes() == before
    assert sorted(path.name for path in table.iterdir() if "parts" in path.name) == []


def test_parts_of_an_output_are_no_input_for_it(table, models, monkeypatch):
    begun(table, models, monkeypatch)
    with pytest.raises(InputError, match="is part of the input"):
        score(table, models, source="out.parquet.parts/*.parquet")


def test_a_file_in_place_of_parts_and_a_directory_in_place_of_the_output_are_named(table, models):
    (table / "out.parquet.parts").write_text("mine")
    with pytest.raises(OutputError, match=r"out\.parquet\.parts is no directory"):
        score(table, models)
    assert (table / "out.parquet.parts").read_text() == "mine"
    (table / "b.parquet").mkdir()
    with pytest.raises(OutputError, match="is a directory"):
        score(table, models, out="b.parquet", overwrite=True)


@pytest.mark.parametrize("out", ["out.parquet", "out.jsonl", "out.csv"])
def test_a_limit_on_the_size_of_files_is_an_error_that_resumes(table, models, out):
    score(table, models, out="whole" + out)
    size = (table / ("whole" + out)).stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (3000 if out == "out.parquet" else size - 100, hard))
        with pytest.raises(OutputError, match=r"cannot be written: .*(File too large|goes on from there)"):
            score(table, models, out=out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not (table / out).exists()
    score(table, models, out=out)
    assert (table / out).read_bytes() == (table / ("whole" + out)).read_bytes()


@pytest.mark.parametrize("out", ["out.parquet", "out.csv"])
def test_stale_parts_beside_a_finished_output_are_removed_and_others_are_not(table, models, monkeypatch, out):
    with monkeypatch.context() as patch:
        keep_parts(patch)
        score(table, models, out=out)
    parts = table / f"{out}.parts"
    fingerprint = (parts / "fingerprint.json").read_text()
    (parts / "fingerprint.json").write_text(json.dumps({"rows": 5}))
    with pytest.raises(OutputError, match="exists"):
        score(table, models, out=out)
    assert list(parts.glob("part-*"))  # of another run
    (parts / "fingerprint.json").write_text(fingerprint)
    with held(table / f"{out}.lock", table / out), pytest.raises(OutputError, match="exists"):
        score(table, models, out=out)
    assert list(parts.glob("part-*"))  # a run has them
    with pytest.raises(OutputError, match="exists"):
        score(table, models, out=out)
    assert not parts.exists()


def test_a_damaged_part_is_named(table, models, monkeypatch):
    begun(table, models, monkeypatch)
    part = table / "out.parquet.parts/part-00000000.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    with pytest.raises(OutputError, match=r"part-00000000\.parquet cannot be read"):
        score(table, models)
    part.unlink()
    score(table, models)


def test_rows_hash_of_a_part_tells_rows_apart(table, models, monkeypatch):
    begun(table, models, monkeypatch)
    first = pq.read_schema(table / "out.parquet.parts/part-00000000.parquet").metadata[b"rows_sha256"]
    records = read_lines(table / "table.jsonl")
    records[3]["prompt"] += "!"
    write_lines(table / "table.jsonl", records)
    with monkeypatch.context() as patch:
        patch.setattr("imagereward.bulk.output.Output.finish", lambda *_: None)
        (table / "out.parquet.parts/fingerprint.json").unlink()
        score_only(table, models)
    second = pq.read_schema(table / "out.parquet.parts/part-00000000.parquet").metadata[b"rows_sha256"]
    assert first != second


def score_only(table, models, source="table.jsonl", **options):
    """Like `score` where no output comes of it."""
    options = {"part_rows": 8, "batch_size": 4, "workers": 0, "device": "cpu", "progress": False, **options}
    score_table(table / source, table / "out.parquet", models["ImageReward"], **options)


def test_a_cache_that_cannot_be_written_is_named(table, models, monkeypatch):
    (table / "file").write_text("")
    with pytest.raises(InputError, match=r"cache directory .* cannot be made"):
        score(table, models, cache=table / "file/cache", cache_budget=0.01)

    def full(self, *_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", full)
    with pytest.raises((InputError, OutputError), match="Read-only file system"):
        score(table, models, cache=table / "cache", cache_budget=0.01)
