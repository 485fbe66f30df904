"""Folders as people have them: nothing is left out or taken for input without a word."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import pictures, small_scorer
from test_bulk import score

from imagereward.bulk import score_table
from imagereward.errors import InputError

PROMPT = "a red circle"


def picture(seed: int) -> PIL.Image.Image:
    return pictures(1, seed)[0]


def encoded(seed: int, format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    picture(seed).save(buffer, format)
    return buffer.getvalue()


def lay(directory: Path, files: dict[str, bytes | str | int]) -> Path:
    """Write files; a number is a picture of that seed, with a caption unless that is there."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, int):
            format = {".jfif": "JPEG", ".jpg": "JPEG", ".webp": "WEBP"}.get(path.suffix.lower(), "PNG")
            content = encoded(content, format)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    return directory


def pack(path: Path, members: list[tuple[str, bytes | str | int]], **options) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", **options) as archive:
        for name, content in members:
            data = encoded(content) if isinstance(content, int) else content
            data = data.encode() if isinstance(data, str) else data
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def alone(prompt: str, image: bytes) -> float:
    return small_scorer("ImageReward", seed=3).score(prompt, PIL.Image.open(io.BytesIO(image)))


def by_id(rows: list[dict]) -> dict[str, dict]:
    return {row["id"]: row for row in rows}


def test_every_file_of_a_folder_is_a_row_a_prompt_or_counted(tmp_path, models):
    files = {
        **{"a.png": 0, "a.caption": PROMPT, "b.png": 1, "b.txt": PROMPT, "c.jfif": 2, "c.txt": "a disc"},
        **{
            "d.v1.5.png": 3,
            "d.v1.5.txt": "a cube",
            "E.PNG": 4,
            "E.txt": PROMPT,
            "f.apng": 5,
            "f.txt": PROMPT,
        },
        **{"._a.png": b"\0\5\26\7", ".hidden/x.png": 6, ".ipynb_checkpoints/a-checkpoint.png": 7},
        **{"__MACOSX/._b.png": b"\0\5\26\7", "deep/__MACOSX/b.png": 8, "@eaDir/b.png": 9, ".DS_Store": "x"},
        **{
            "g.heic": b"heic",
            "g.txt": PROMPT,
            "h.psd": b"8BPS",
            "i.eps": b"%!PS",
            "readme.md": "x",
            "j": "x",
        },
        **{"k.svg": "<svg/>", "lonely.txt": "x", "b.png.txt": "x"},
    }
    lay(tmp_path / "in", files)
    summary, rows = score(tmp_path, models, source="in")
    found = by_id(rows)
    assert sorted(found) == ["E.PNG", "a.png", "b.png", "c.jfif", "d.v1.5.png", "f.apng"]
    assert (found["c.jfif"]["prompt"], found["d.v1.5.png"]["prompt"]) == ("a disc", "a cube")
    assert summary.failed == 0
    assert dict(summary.skipped) == {
        "hidden (.*, ._*, __MACOSX …)": 7,
        ".heic (not decoded here)": 1,
        ".psd (not decoded here)": 1,
        ".eps (not decoded here)": 1,
        ".svg (not decoded here)": 1,
        ".md": 1,
        "without a suffix": 1,
        ".txt without a picture": 3,
    }
    everything = sum(len(names) for _, _, names in os.walk(tmp_path / "in"))
    captions = 6
    assert everything == len(rows) + captions + sum(summary.skipped.values())
    for words in ("6 rows", "none failed", "16 skipped: ", "7 hidden", "1 .heic (not decoded here)"):
        assert words in str(summary)


def test_linked_folders_are_read_once(tmp_path, models):
    lay(tmp_path / "in", {"real/a.png": 0, "real/a.txt": PROMPT, ".store/z.png": 3, ".store/z.txt": "kept"})
    lay(tmp_path / "elsewhere", {"b.png": 1, "b.txt": "a disc", "deep/c.png": 2, "deep/c.txt": "a cube"})
    links = {
        "linked": tmp_path / "elsewhere",
        "again": tmp_path / "elsewhere/deep",  # reached by `linked` as well
        "real/up": tmp_path / "in",  # a circle
        "above": tmp_path,  # contains the input
        "stored": tmp_path / "in/.store",  # in the input, but hidden there
        "nowhere": tmp_path / "none",
        "linked-picture.png": tmp_path / "elsewhere/b.png",
    }
    for name, target in links.items():
        (tmp_path / "in" / name).symlink_to(target)
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in/real")
    summary, rows = score(tmp_path, models, source="in", prompt=PROMPT)
    names = sorted(Path(row["id"]).name for row in rows)
    assert names == ["a.png", "b.png", "c.png", "linked-picture.png", "z.png"]
    assert summary.failed == 0
    repeated = summary.skipped["linked folders that are read elsewhere or contain the input"]
    assert repeated == 4  # again's like, real/up, above, elsewhere/back


def test_a_glob_of_pictures_is_a_folder_of_those(tmp_path, models):
    files = {"a.png": 0, "a.txt": "one", "b.jpg": 1, "b.txt": "two", "x/c.webp": 2, "x/c.txt": "three"}
    lay(tmp_path / "in", {**files, "d.parquet": b"junk"})
    _, rows = score(tmp_path, models, source="in/**/*.[pjw]*[gp]")
    assert [(row["id"], row["prompt"]) for row in rows] == [
        ("a.png", "one"),
        ("b.jpg", "two"),
        ("x/c.webp", "three"),
    ]


FILES = {"0/0.jpg": 0, "0/0.txt": "one", "0/0.json": "{}", "0/1.jpg": 1, "0/1.txt": "two", "0/1.json": "{}"}


def test_a_table_without_images_hides_no_pictures(tmp_path, models):
    directory = lay(tmp_path / "in", FILES)
    pq.write_table(pa.table({"url": ["u", "v"], "caption": ["one", "two"]}), directory / "0.parquet")
    (directory / "0_stats.json").write_text("{}")
    (directory / "notes.parquet").write_text("no Parquet")
    summary, rows = score(tmp_path, models, source="in")
    assert [row["prompt"] for row in rows] == ["one", "two"]
    assert summary.skipped == {".parquet": 2, ".json without a picture": 1}


def test_shards_beside_tables_without_images_are_read(tmp_path, models):
    pack(tmp_path / "in/0.tar", [("0.png", 0), ("0.txt", "one")])
    pq.write_table(pa.table({"url": ["u"], "caption": ["one"]}), tmp_path / "in/0.parquet")
    lay(tmp_path / "in", {"0_stats.json": "{}", "._0.tar": "x", "deep/notes.md": "x"})
    summary, rows = score(tmp_path, models, source="in")
    assert [row["prompt"] for row in rows] == ["one"]
    assert summary.skipped == {
        ".parquet": 1,
        ".json without a picture": 1,
        "hidden (.*, ._*, __MACOSX …)": 1,
        ".md": 1,
    }


@pytest.mark.parametrize("what", ["paths", "bytes", "shard", "shard and table"])
def test_a_directory_that_can_be_read_in_two_ways_is_refused(tmp_path, models, what):
    directory = lay(tmp_path / "in", {} if what == "shard and table" else FILES)
    directory.mkdir(exist_ok=True)
    if "shard" in what:
        pack(directory / "s.tar", [("0.png", 0), ("0.txt", "one")])
    if what != "shard":
        column = [b"x"] if what == "bytes" else ["0/0.jpg"]
        names = "pixels" if what == "bytes" else "file_name"
        pq.write_table(pa.table({names: column, "text": ["one"]}), directory / "t.parquet")
    with pytest.raises(
        InputError, match=r"in can be read as .* or as .*: give the one that is meant, as a quo"
    ):
        score(tmp_path, models, source="in")
    if what == "paths":
        _, rows = score(tmp_path, models, source="in/*.parquet")
        assert [row["image"] for row in rows] == [str(directory / "0/0.jpg")]


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv"])
def test_an_output_in_its_input_is_never_input(tmp_path, models, suffix):
    directory = lay(tmp_path / "in", FILES)
    first, _ = score(tmp_path, models, source="in", out=f"in/scores{suffix}")
    before = (directory / f"scores{suffix}").read_bytes()
    second, _ = score(tmp_path, models, source="in", out=f"in/scores{suffix}", overwrite=True)
    assert (directory / f"scores{suffix}").read_bytes() == before
    assert (first.scored, second.scored) == (2, 2)
    assert second.skipped == {"from earlier outputs": 1 if suffix == ".parquet" else 2}
    _, rows = score(tmp_path, models, source="in", out="elsewhere.parquet")
    assert [row["id"] for row in rows] == ["0/0.jpg", "0/1.jpg"]


def test_an_output_among_the_shards_or_tables_of_a_glob_is_left_out_and_counted(tmp_path, models):
    lay(tmp_path / "in", FILES)
    lines = json.dumps({"image": "in/0/0.jpg", "prompt": "one"}) + "\n"
    (tmp_path / "a.jsonl").write_text(lines)
    score(tmp_path, models, source="a.jsonl", out="z.jsonl")
    summary, rows = score(tmp_path, models, source="*.jsonl", out="o.parquet")
    assert (len(rows), summary.skipped) == (1, {"from earlier outputs": 1})
    _, rows = score(tmp_path, models, source="z.jsonl", out="again.parquet")  # named, it is meant
    assert len(rows) == 1
    pack(tmp_path / "t/0.tar", [("0.png", 0), ("0.txt", "one")])
    score(tmp_path, models, source="t", out="t/scores.parquet")
    summary, rows = score(tmp_path, models, source="t", out="u.parquet")
    assert (len(rows), summary.skipped) == (1, {"from earlier outputs": 1})


def test_an_output_that_its_glob_finds_is_left_out_of_the_next_run(tmp_path, models):
    lay(tmp_path / "in", FILES)
    line = json.dumps({"image": "0/0.jpg", "prompt": "one"}) + "\n"
    (tmp_path / "in/a.jsonl").write_text(line)
    first, _ = score(tmp_path, models, source="in/*.jsonl", out="in/o.jsonl")
    before = (tmp_path / "in/o.jsonl").read_bytes()
    second, _ = score(tmp_path, models, source="in/*.jsonl", out="in/o.jsonl", overwrite=True)
    assert (first.rows, second.rows, second.skipped) == (1, 1, {"from earlier outputs": 1})
    assert (tmp_path / "in/o.jsonl").read_bytes() == before


def test_a_name_that_begins_with_a_tilde_is_no_home(tmp_path, models, monkeypatch):
    monkeypatch.setenv("HOME", str(lay(tmp_path / "home", {"x.png": 1})))
    lay(tmp_path / "in", {"~1.png": 2, "~1.txt": "one", "~/x.png": 3, "~/x.txt": "two"})
    monkeypatch.chdir(tmp_path / "in")
    score_table(".", tmp_path / "o.parquet", [models["ImageReward"]], device="cpu", workers=0, progress=False)
    rows = by_id(pq.read_table(tmp_path / "o.parquet").to_pylist())
    assert rows["~1.png"]["score:ImageReward"] == pytest.approx(alone("one", encoded(2)), abs=1e-6)
    assert rows["~/x.png"]["score:ImageReward"] == pytest.approx(alone("two", encoded(3)), abs=1e-6)


def test_a_glob_through_a_circle_of_links_reads_a_table_once(tmp_path, models):
    lay(tmp_path / "in", FILES)
    line = json.dumps({"image": "0/0.jpg", "prompt": "one"}) + "\n"
    lay(tmp_path / "in", {"a.jsonl": line, "below/b.jsonl": line.replace("0/0", "../0/1")})
    (tmp_path / "in/below/up").symlink_to(tmp_path / "in")
    _, rows = score(tmp_path, models, source="in/**/*.jsonl")
    assert [Path(row["image"]).name for row in rows] == ["0.jpg", "1.jpg"]
    _, rows = score(tmp_path, models, source="in/**/*.jpg", out="o.parquet")
    assert [row["id"] for row in rows] == ["0.jpg", "1.jpg"]


def test_a_folder_copied_with_its_links_scores_the_same(tmp_path, models):
    lay(tmp_path / "elsewhere", {"b.png": 1, "b.txt": "a disc"})
    lay(tmp_path / "in", {"a.png": 0, "a.txt": PROMPT})
    (tmp_path / "in/linked").symlink_to(tmp_path / "elsewhere")
    shutil.copytree(tmp_path / "in", tmp_path / "copy")
    _, linked = score(tmp_path, models, source="in")
    _, copied = score(tmp_path, models, source="copy", out="copy.parquet")
    facts = [
        [(row["id"], row["prompt"], row["score:ImageReward"]) for row in rows] for rows in (linked, copied)
    ]
    assert facts[0] == facts[1]
    assert len(linked) == 2
