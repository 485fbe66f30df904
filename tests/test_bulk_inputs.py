"""Every input that tables are scored from, against `score_pairs` on the same prompts and images."""

import csv
import io
import json
import tarfile
from pathlib import Path

import PIL.PngImagePlugin
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import pictures, small_scorer
from test_bulk import read_lines, score

from imagereward.errors import InputError
from imagereward.records import open_table


def right(rows, prompts, images) -> bool:
    """Whether the rows have these prompts, and their scores in parts of 8 and batches of 4."""
    scorer = small_scorer("ImageReward", seed=3)
    scores: list[float] = []
    for start in range(0, len(prompts), 8):
        part = slice(start, start + 8)
        scores += scorer.score_pairs(prompts[part], images[part], batch_size=4)
    assert [row["prompt"] for row in rows] == prompts
    assert [row["score:ImageReward"] for row in rows] == scores
    return True


@pytest.fixture
def pairs(table):
    """The directory, and the prompts and paths of its table."""
    records = read_lines(table / "table.jsonl")
    return table, [record["prompt"] for record in records], [str(table / r["image"]) for r in records]


def test_csv_with_a_mark_and_names_of_its_own(pairs, models):
    directory, prompts, paths = pairs
    with open(directory / "t.csv", "w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.writer(stream)
        writer.writerows([["bild", "wort"], *zip(paths, prompts)])
    _, rows = score(directory, models, source="t.csv", image_column="bild", prompt_column="wort")
    assert right(rows, prompts, paths)


def test_a_short_line_of_csv_costs_its_row(pairs, models):
    directory, _, paths = pairs
    (directory / "t.csv").write_text(f"image,prompt\n{paths[0]}\n{paths[1]},a\n")
    summary, rows = score(directory, models, source="t.csv")
    assert (summary.rows, summary.failed) == (2, 1)
    assert "no prompt" in rows[0]["error"]


def test_csv_bytes_that_are_no_text_cost_their_row(pairs, models):
    directory, _, paths = pairs
    (directory / "t.csv").write_bytes(
        f"image,prompt\n{paths[0]},caf".encode() + b"\xe9\n" + f"{paths[1]},a\n".encode()
    )
    summary, rows = score(directory, models, source="t.csv")
    assert "not valid text" in rows[0]["error"]
    assert (summary.failed, rows[1]["error"]) == (1, None)


@pytest.mark.parametrize("form", ["paths", "bytes", "structs"])
def test_parquet_with_paths_bytes_or_structs(pairs, models, form):
    directory, prompts, paths = pairs
    data = [Path(path).read_bytes() for path in paths]
    images = {
        "paths": paths,
        "bytes": data,
        "structs": [{"bytes": each, "path": f"{i}.png"} for i, each in enumerate(data)],
    }[form]
    columns = {"image": images, "text": prompts, "unused": list(range(len(paths)))}
    pq.write_table(pa.table(columns), directory / "t.parquet", row_group_size=5)
    _, rows = score(directory, models, source="t.parquet", keep=["unused"])
    assert right(rows, prompts, paths)
    names = {"paths": paths, "bytes": [None] * 23, "structs": [f"{i}.png" for i in range(23)]}[form]
    assert [row["image"] for row in rows] == names
    assert [row["unused"] for row in rows] == [str(i) for i in range(23)]


def test_several_files_are_one_table_in_order_of_their_names(pairs, models):
    directory, prompts, paths = pairs
    lines = (directory / "table.jsonl").read_text().splitlines(keepends=True)
    (directory / "p1.jsonl").write_text("\n".join(lines[:10]))  # with blank lines
    (directory / "p2.jsonl").write_text("".join(lines[10:]))
    _, rows = score(directory, models, source="p?.jsonl")
    assert right(rows, prompts, paths)


def test_row_groups_without_a_wanted_row_are_not_read(pairs, monkeypatch):
    directory, prompts, paths = pairs
    pq.write_table(pa.table({"image": paths, "prompt": prompts}), directory / "t.parquet", row_group_size=5)
    read = []
    batches = pq.ParquetFile.iter_batches

    def recorded(self, *arguments, row_groups, **options):
        read.extend(row_groups)
        return batches(self, *arguments, row_groups=row_groups, **options)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", recorded)
    source = open_table("t", [directory / "t.parquet"])
    numbers = [found.number for found in source.records(lambda number: number in (6, 21), ["image"])]
    assert (numbers, read) == ([6, 21], [1, 4])


def test_rankings_in_imagerewarddbs_layout(pairs, models):
    directory, prompts, paths = pairs
    records = [
        {"id": f"p{i}", "prompt": prompts[i], "generations": [f"images/{i}.png", f"images/{i + 1}.png"],
         "ranking": [2, 1]}
        for i in range(5)
    ]  # fmt: skip
    (directory / "test.json").write_text(json.dumps(records))
    _, rows = score(directory, models, source="test.json", keep=["rank"])
    assert [(row["id"], row["rank"]) for row in rows[:4]] == [
        ("p0", "2"),
        ("p0", "1"),
        ("p1", "2"),
        ("p1", "1"),
    ]
    assert right(rows, [prompts[i // 2] for i in range(10)], [paths[(i + 1) // 2] for i in range(10)])


def add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    archive.addfile(member, io.BytesIO(data))


def test_webdataset_shards(pairs, models):
    directory, prompts, paths = pairs
    (directory / "shards").mkdir()
    for shard, rows in enumerate((range(15), range(15, 23))):
        with tarfile.open(directory / f"shards/{shard}.tar", "w") as archive:
            for row in rows:
                add(archive, f"a/{row:03}.png", Path(paths[row]).read_bytes())
                if shard:
                    add(archive, f"a/{row:03}.json", json.dumps({"txt": prompts[row]}).encode())
                else:
                    add(archive, f"a/{row:03}.txt", prompts[row].encode())
    _, rows = score(directory, models, source="shards", workers=1)
    assert right(rows, prompts, paths)
    assert rows[3]["id"] == "a/003"
    assert rows[20]["image"] == f"{directory}/shards/1.tar/a/020.png"


def test_a_damaged_member_costs_its_row_and_a_damaged_shard_the_run(pairs, models):
    directory, _, paths = pairs
    with tarfile.open(directory / "s.tar", "w") as archive:
        add(archive, "0.png", Path(paths[0]).read_bytes())
        add(archive, "0.txt", b"a")
        add(archive, "1.png", b"junk")
        add(archive, "1.txt", b"a")
        add(archive, "2.txt", b"a")
        add(archive, "3.json", b"{")
    _, rows = score(directory, models, source="s.tar")
    assert [bool(row["error"]) for row in rows] == [False, True, True, True]
    (directory / "b.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(InputError, match=r"b\.tar cannot be read as an uncompressed tar file"):
        score(directory, models, source="b.tar", out="b.parquet")


def test_a_folder_takes_prompts_from_text_files_then_from_images(tmp_path, models):
    folder = tmp_path / "folder"
    (folder / "b").mkdir(parents=True)
    info = PIL.PngImagePlugin.PngInfo()
    info.add_text("parameters", "from metadata\nSteps: 3, Size: 9x9")
    images = pictures(4)
    images[0].save(folder / "0.png", pnginfo=info)
    images[1].save(folder / "1.png", pnginfo=info)
    images[2].save(folder / "b/2.png")
    images[3].save(folder / "b/3.PNG")
    (folder / "1.txt").write_text("from the text file\n")
    (folder / "b/3.txt").write_text("another")
    summary, rows = score(tmp_path, models, source="folder", keep=["folder"])
    assert [row["id"] for row in rows] == ["0.png", "1.png", "b/2.png", "b/3.PNG"]
    assert [row["folder"] for row in rows] == [".", ".", "b", "b"]
    assert "has no prompt" in rows[2]["error"]
    good = [row for row in rows if not row["error"]]
    assert summary.failed == 1
    assert right(good, ["from metadata", "from the text file", "another"], [images[0], images[1], images[3]])


def test_inputs_without_rows_are_refused(tmp_path, models):
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.jsonl").write_text("\n")
    (tmp_path / "a.csv").write_text("image,prompt\n")
    (tmp_path / "a.json").write_text("{}")
    (tmp_path / "a.parquet").write_text("x")
    for source, words in {
        "folder": "no images",
        "a.jsonl": "no records",
        "a.csv": "no rows",
        "a.json": "holds a dict; expected a list",
        "a.parquet": "cannot be read as Parquet",
    }.items():
        with pytest.raises(InputError, match=words):
            score(tmp_path, models, source=source)
