"""Where the images of tables are: beside each table of a glob, and where a table of scores says."""

import tarfile

import pytest
from tables_of_images import picture, table_of
from test_bulk import read_lines, score, write_lines
from typer.testing import CliRunner

from imagereward.cli import app


@pytest.mark.parametrize("kind", ["jsonl", "json", "csv", "tsv", "parquet"])
def test_each_table_of_a_glob_has_its_images_in_its_own_folder(tmp_path, models, kind):
    for number, folder in enumerate(["model-a", "model-b/deep", "model-c"]):
        picture(tmp_path / "runs" / folder / "0.png", 30 + number)
        table_of(tmp_path / "runs" / folder / f"m.{kind}", [{"image": "0.png", "prompt": f"of {number}"}])
    summary, rows = score(tmp_path, models, source=f"runs/**/m.{kind}")
    assert summary.failed == 0
    assert [(row["prompt"], row["width"]) for row in rows] == [("of 0", 30), ("of 1", 31), ("of 2", 32)]


def test_images_says_where_paths_of_all_tables_begin(place, models):
    for name in ("x", "y"):
        table_of(place / name / "m.csv", [{"image": "a.png", "prompt": name}])
    _, rows = score(place, models, source="*/m.csv", images=place)
    assert [row["width"] for row in rows] == [31, 31]


@pytest.mark.parametrize("out", ["own/scores.jsonl", "own/scores.csv", "own/deep/scores.parquet"])
@pytest.mark.parametrize("given", ["t.jsonl", "absolute", "images"])
def test_a_table_of_scores_can_be_scored_again(place, models, monkeypatch, out, given):
    monkeypatch.chdir(place)
    write_lines(place / "t.jsonl", [{"image": f"{name}.png", "prompt": name} for name in "ab"])
    for name in "ab":
        picture(place / f"images/{name}.png", 50)
        (place / f"images/{name}.txt").write_text(name)
    command = ["score-table", str(place / "t.jsonl") if given == "absolute" else given, "--out", out]
    more = ["-m", models["ImageReward"], "--workers", "0", "--device", "cpu"]
    (place / out).parent.mkdir(parents=True)
    assert CliRunner().invoke(app, [*command, *more]).exit_code == 0
    monkeypatch.chdir(place / "own")
    again = ["score-table", str(place / out), "--out", "second.jsonl", *more]
    result = CliRunner().invoke(app, again)
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(
        app, ["score-table", "second.jsonl", "--out", str(place / "third.jsonl"), *more]
    )
    assert result.exit_code == 0, result.output
    rows = read_lines(place / "third.jsonl")
    assert [row["prompt"] for row in rows] == ["a", "b"]
    assert [row["width"] for row in rows] == ([50, 50] if given == "images" else [31, 32])


def test_paths_through_links_are_named_by_where_they_lead(place, models, monkeypatch):
    picture(place / "real/pictures/c.png", 33)
    picture(place / "pictures/c.png", 34)  # where `..` would lead by its letters
    table_of(place / "real/tables/t.csv", [{"image": "../pictures/c.png", "prompt": "one"}])
    (place / "tables").symlink_to(place / "real/tables")
    (place / "out").mkdir()
    (place / "linked-out").symlink_to(place / "out")
    monkeypatch.chdir(place)
    more = ["-m", models["ImageReward"], "--workers", "0", "--device", "cpu"]
    for source, out in (("tables/t.csv", "linked-out/1.jsonl"), ("out/1.jsonl", "2.jsonl")):
        assert CliRunner().invoke(app, ["score-table", source, "--out", out, *more]).exit_code == 0
        assert [row["width"] for row in read_lines(place / out)] == [33]


def test_images_inside_archives_are_named_as_what_they_are(place, models):
    with tarfile.open(place / "s.tar", "w") as archive:
        archive.add(place / "a.png", "a.png")
    score(place, models, source="s.tar", out="1.parquet", prompt="one")
    _, rows = score(place, models, source="1.parquet", out="2.parquet", prompt="one")
    assert "is inside an archive: give" in rows[0]["error"]


def test_a_report_reads_images_where_their_table_is(place, models, monkeypatch):
    write_lines(place / "t.jsonl", [{"image": f"{name}.png", "prompt": "one"} for name in "ab"])
    (place / "own").mkdir()
    monkeypatch.chdir(place)
    more = ["-m", models["ImageReward"], "--workers", "0", "--device", "cpu"]
    CliRunner().invoke(app, ["score-table", "t.jsonl", "--out", "own/scores.csv", *more])
    monkeypatch.chdir(place.parent)
    result = CliRunner().invoke(
        app, ["report", str(place / "own/scores.csv"), "--out", str(place / "report.html")]
    )
    assert "0 images not shown" in result.output
