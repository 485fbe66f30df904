"""Tables as people have them: which columns are which, encodings, delimiters, and damaged lines."""

import json

import pytest
from tables_of_images import table_of
from test_bulk import read_lines, score, write_lines
from typer.testing import CliRunner

from imagereward.cli import app
from imagereward.errors import InputError
from imagereward.records import open_table, read_all
from imagereward.records.text import MOST_LINE

SEPARATORS = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\rh"  # each splits lines for str.splitlines


def failed(rows) -> list[int]:
    return [row["row"] for row in rows if row["error"]]


def test_columns_are_found_in_each_file_of_a_glob(place, models):
    (place / "1.csv").write_text("ID,Image,PROMPT\nfirst,a.png,one\n")
    (place / "2.csv").write_text("caption;file_name\ntwo;b.png\n")
    (place / "3.csv").write_text("\n")
    (place / "4.csv").write_text("path\ttext\tid\na.png\tthree\tlast\n")
    _, rows = score(place, models, source="*.csv")
    found = [(row["id"], row["prompt"], row["width"]) for row in rows]
    assert found == [("first", "one", 31), (None, "two", 32), ("last", "three", 31)]


def test_layouts_are_found_in_each_file_of_a_glob(place, models):
    table_of(place / "1.json", [{"image": "a.png", "prompt": "one"}])
    table_of(place / "2.json", [{"id": "2", "prompt": "two", "generations": ["b.png", "a.png"]}])
    table_of(place / "3.json", [{"prompt": "three", "image_path": ["b.png"], "rank": [0]}])
    _, rows = score(place, models, source="*.json")
    found = [(row["prompt"], row["width"]) for row in rows]
    assert found == [("one", 31), ("two", 32), ("two", 31), ("three", 32)]


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_column_that_was_named_has_no_stand_in(place, models, kind):
    table_of(place / f"1.{kind}", [{"image": "a.png", "words": "one", "prompt": "other"}])
    table_of(place / f"2.{kind}", [{"image": "a.png", "prompt": "other"}])
    _, rows = score(place, models, source=f"*.{kind}", prompt_column="words")
    assert (rows[0]["prompt"], failed(rows)) == ("one", [1])
    assert "no prompt" in rows[1]["error"]


def test_a_record_without_a_prompt_takes_no_other_column(place, models):
    write_lines(
        place / "t.jsonl",
        [{"image": "a.png", "prompt": "one", "caption": "x"}, {"image": "a.png", "caption": "x"}],
    )
    _, rows = score(place, models, source="t.jsonl")
    assert failed(rows) == [1]


@pytest.mark.parametrize(
    ("content", "options"),
    [
        ("image,prompt\na.png,ein Käfer\nb.png,zwei\n".encode(), {}),
        ("image;prompt\r\na.png;ein Käfer\r\nb.png;zwei\r\n".encode("utf-8-sig"), {}),
        ("sep=;\r\nimage;prompt\r\na.png;ein Käfer\r\nb.png;zwei".encode("utf-16"), {}),
        ("image\tprompt\na.png\tein Käfer\nb.png\tzwei\n".encode("utf-16"), {}),
        (
            "nr;image;prompt, long\n1;a.png;ein Käfer\n2;b.png;zwei\n".encode(),
            {"prompt_column": "prompt, long"},
        ),
        ("\ufeffimage,prompt\n".encode() + "\ufeffa.png,ein Käfer\nb.png,zwei\n".encode(), {}),
        ("Image , PROMPT\na.png,ein Käfer\nb.png,zwei\n".encode("cp1252"), {"encoding": "cp1252"}),
        ("image,prompt\na.png,ein Käfer\nb.png,zwei\n".encode("utf-16-le"), {"encoding": "utf-16-le"}),
        ("image,prompt\na.png,ein Käfer\nb.png,zwei\n".encode("utf-32"), {}),
    ],
)
def test_csv_as_programs_write_it(place, models, content, options):
    (place / "t.csv").write_bytes(content)
    _, rows = score(place, models, source="t.csv", **options)
    assert [(row["prompt"], row["width"]) for row in rows] == [("ein Käfer", 31), ("zwei", 32)]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_json_with_a_byte_order_mark(place, models, encoding):
    (place / "t.jsonl").write_text('{"image": "a.png", "prompt": "Ω"}\n', encoding=encoding)
    (place / "t.json").write_text('[{"image": "b.png", "prompt": "Ω"}]', encoding=encoding)
    for source, width in (("t.jsonl", 31), ("t.json", 32)):
        _, rows = score(place, models, source=source, out=f"{source}.parquet")
        assert [(row["prompt"], row["width"]) for row in rows] == [("Ω", width)]


def test_gb18030_of_the_command_line(place, models):
    (place / "t.csv").write_bytes("image,prompt\na.png,红色圆圈\n".encode("gb18030"))
    command = ["score-table", str(place / "t.csv"), "--out", str(place / "o.jsonl"), "--workers", "0"]
    command += ["-m", models["ImageReward"], "--device", "cpu"]
    wrong = CliRunner().invoke(app, command)
    assert wrong.exit_code == 3
    assert "encoding=" in read_lines(place / "o.jsonl")[0]["error"]
    right = CliRunner().invoke(app, [*command, "--overwrite", "--encoding", "gb18030"])
    assert right.exit_code == 0, right.output
    assert read_lines(place / "o.jsonl")[0]["prompt"] == "红色圆圈"


@pytest.mark.parametrize(
    ("source", "content", "encoding", "message"),
    [
        ("t.csv", "image,prompt\n".encode("utf-16-le"), None, "UTF-16 without a byte order mark.*utf-16-le"),
        ("t.csv", b"image,prompt\n", "utf-9", "'utf-9' is no text encoding"),
        ("t.csv", "image,prompt\n".encode("utf-16"), "cp1252", "byte order mark of UTF-16"),
        ("t.parquet", b"", "cp1252", "is for text files"),
        ("t.csv", b"image,prompt,image\n", None, "several columns 'image'"),
        ("t.csv", b"image,prompt,Prompt \n", None, "several columns for the prompt: 'prompt', 'Prompt '"),
        ("t.json", b'{"image": "a.png"}\n{"image": "b.png"}\n', None, r"\.jsonl"),
        ("t.json", b'{"image": "a.png"}', None, "holds a dict; expected a list"),
        ("t.xlsx", b"", None, r"is no table: .*\.csv"),
    ],
)
def test_what_cannot_be_read_as_a_whole_is_refused(place, models, source, content, encoding, message):
    (place / source).write_bytes(content)
    with pytest.raises(InputError, match=message):
        score(place, models, source=source, encoding=encoding)


def test_only_line_feeds_end_lines(place, models):
    (place / "t.jsonl").write_text(json.dumps({"image": "a.png", "prompt": SEPARATORS}, ensure_ascii=False))
    table_of(place / "t.tsv", [{"image": "a.png", "prompt": SEPARATORS}])
    for source in ("t.jsonl", "t.tsv"):
        _, rows = score(place, models, source=source, out=f"{source}.parquet")
        assert [row["prompt"] for row in rows] == [SEPARATORS]


@pytest.mark.parametrize("size", [200_000, MOST_LINE + 1])
def test_a_long_cell_costs_at_most_its_own_row(place, models, size):
    cells = f"image,prompt,base64\na.png,one,{'A' * size}\nb.png,two,\n"
    (place / "t.csv").write_text(cells)
    summary, rows = score(place, models, source="t.csv")
    assert summary.rows == 2
    assert failed(rows) == ([] if size < MOST_LINE else [0])
    assert (rows[1]["prompt"], rows[1]["width"]) == ("two", 32)


def test_an_empty_cell_is_what_null_is_in_json(place, models):
    (place / "t.csv").write_text('image,prompt\na.png,\na.png,""\n,one\na.png\na.png,one\n')
    write_lines(
        place / "t.jsonl",
        [
            {"image": "a.png", "prompt": None},
            {"image": "a.png", "prompt": None},
            {"image": None, "prompt": "one"},
            {"image": "a.png"},
            {"image": "a.png", "prompt": "one"},
        ],
    )
    _, cells = score(place, models, source="t.csv", out="1.parquet")
    _, nulls = score(place, models, source="t.jsonl", out="2.parquet")
    assert cells == nulls
    assert failed(cells) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("lines", "bad"),
    [
        (['a.png,"one', "b.png,two", "a.png,three"], [0]),
        (["a.png,one", 'b.png,"two', "a.png,three", "b.png,four"], [1]),
        (['a.png,"one', 'b.png,"two', "a.png,three"], [0, 1]),
        (['a.png,"one" red', "b.png,two"], [0]),
        (["a.png,one", 'b.png,"two'], [1]),
        (["a.png,one, red", "b.png,two"], [0]),
    ],
)
def test_an_unclosed_quote_or_a_cell_too_many_costs_its_line(place, models, lines, bad):
    (place / "t.csv").write_text("\n".join(["image,prompt", *lines]) + "\n")
    summary, rows = score(place, models, source="t.csv")
    assert (summary.rows, failed(rows)) == (len(lines), bad)
    assert all(f"line {row + 2} " in rows[row]["error"] for row in bad)


def test_quotes_that_are_never_closed_end_a_table_that_would_take_hours(tmp_path):
    (tmp_path / "t.csv").write_text("image,prompt\n" + 'a",",c\n' * 40_000)
    table = open_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match=r"t\.csv: up to line \d+, quotes are not closed again and again"):
        table.count()


def test_a_key_that_is_twice_among_many_is_found_at_once(tmp_path):
    pairs = ", ".join(f'"k{number}": 1' for number in range(100_000))
    (tmp_path / "t.jsonl").write_text("{" + pairs + ', "k99999": 2}\n')
    ((_, fault, _),) = read_all(open_table(tmp_path / "t.jsonl"))
    assert "k99999" in fault


def test_a_column_stands_in_only_where_the_record_has_none_of_its_own(place, models):
    write_lines(place / "a.jsonl", [{"image": "a.png", "prompt": "q"}])
    own = {"image": "a.png", "prompt": "p", "text": "t"}
    write_lines(place / "b.jsonl", [{"image": "a.png", "text": "t"}] * 100 + [own])
    _, rows = score(place, models, source="*.jsonl")
    assert [row["prompt"] for row in rows] == ["q", *["t"] * 100, "p"]


def test_quoted_cells_may_hold_quotes_delimiters_and_line_ends(place, models):
    prompt = 'a sign, "open";\r\nat night'
    table_of(place / "t.csv", [{"image": "a.png", "prompt": prompt}, {"image": "b.png", "prompt": "two"}])
    _, rows = score(place, models, source="t.csv")
    assert [row["prompt"] for row in rows] == [prompt, "two"]


def test_a_key_that_is_there_twice_costs_its_line(place, models):
    (place / "t.jsonl").write_text(
        '{"image": "a.png", "prompt": "one", "prompt": "two"}\n"text"\n7\n{"image": "b.png", "prompt": "x"}\n'
    )
    _, rows = score(place, models, source="t.jsonl")
    assert failed(rows) == [0, 1, 2]
    assert "'prompt' twice" in rows[0]["error"]
