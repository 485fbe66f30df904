"""Data sets in their published layouts, scored and trained on; files of prompts of every kind."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tables_of_images import picture, table_of
from test_bulk import score
from test_cli import error_of

from imagereward.agreement.rankings import ranking_file, read_rankings
from imagereward.bulk.inputs.sources import open_source
from imagereward.errors import InputError
from imagereward.images.preprocess import Preprocess
from imagereward.tuning.data.image_pairs import ImagePairs
from imagereward.tuning.data.prompts import read_prompts, read_rows
from imagereward.tuning.reward_model.data import RankedImages

HUB = [
    {
        "image_path": "images/train/x/a.webp",
        "prompt_id": "7-1",
        "prompt": "one",
        "rank": 2,
        "overall_rating": 5,
    },
    {
        "image_path": "images/train/x/b.webp",
        "prompt_id": "7-1",
        "prompt": "one",
        "rank": 1,
        "overall_rating": 4,
    },
    {
        "image_path": "images/train/x/c.webp",
        "prompt_id": "7-2",
        "prompt": "two",
        "rank": 1,
        "overall_rating": 5,
    },
    {
        "image_path": "images/train/x/d.webp",
        "prompt_id": "7-2",
        "prompt": "two",
        "rank": 3,
        "overall_rating": 4,
    },
]


@pytest.fixture
def hub(tmp_path):
    """ImageRewardDB as the hub has it, with four pictures from 40 to 43 pixels wide."""
    for number, record in enumerate(HUB):
        picture(tmp_path / record["image_path"], 40 + number)
    table_of(tmp_path / "images/train/x/x.json", HUB)
    table_of(tmp_path / "metadata-train.parquet", HUB)
    table_of(tmp_path / "metadata-validation.parquet", HUB[2:])
    table_of(tmp_path / "all.csv", HUB)
    return tmp_path


@pytest.mark.parametrize("source", ["images/train/x/x.json", "metadata-train.parquet", "all.csv"])
def test_imagerewarddb_as_on_the_hub(hub, models, source):
    _, rows = score(hub, models, source=source, keep=["rank"])
    found = [(row["id"], row["prompt"], row["width"], row["rank"]) for row in rows]
    assert found == [
        ("7-1", "one", 40, "2"),
        ("7-1", "one", 41, "1"),
        ("7-2", "two", 42, "1"),
        ("7-2", "two", 43, "3"),
    ]
    ranked = read_rankings(hub / source)
    assert [(each.id, each.prompt, each.ranking) for each in ranked] == [
        ("7-1", "one", (2, 1)),
        ("7-2", "two", (1, 3)),
    ]
    assert all(image.is_file() for each in ranked for image in each.generations)


def test_training_finds_rankings_by_the_names_that_data_sets_give_them(hub):
    assert ranking_file(hub, "train") == hub / "metadata-train.parquet"
    assert len(RankedImages(ranking_file(hub, "valid"), Preprocess(32))) == 1
    table_of(hub / "train.csv", [{**record, "image_path": f"{record['image_path']}"} for record in HUB])
    assert ranking_file(hub, "train") == hub / "train.csv"
    table_of(hub / "train.json", HUB)
    with pytest.raises(InputError, match=r"train\.json, train\.csv; expected one"):
        ranking_file(hub, "train")
    assert ranking_file(hub, "test") == hub / "test.json"


@pytest.mark.parametrize(
    ("record", "ranks"),
    [
        ({"id": "1", "prompt": "one", "generations": ["a.png", "b.png"], "ranking": [1, 2]}, ["1", "2"]),
        (
            {"prompt": "one", "image_path": ["a.png", "b.png"], "rank": [1, 0], "raw_annotations": []},
            ["1", "0"],
        ),
        ({"prompt": "one", "file_path": ["a.png", "b.png"], "human_preference": [0, 1]}, ["2", "1"]),
        ({"Prompt": "one", "Images": ["a.png", "b.png"]}, [None, None]),
        ({"id": "1", "prompt": "one", "generations": ["a.png", "b.png"], "ranking": [1, 1]}, ["1", "1"]),
    ],
)
@pytest.mark.parametrize("kind", ["json", "jsonl", "parquet"])
def test_records_with_lists_of_images(place, models, record, ranks, kind):
    table_of(place / f"t.{kind}", [record])
    summary, rows = score(place, models, source=f"t.{kind}", keep=["rank"])
    assert [(row["prompt"], row["width"], row["rank"]) for row in rows] == [
        ("one", 31, ranks[0]),
        ("one", 32, ranks[1]),
    ]
    assert summary.failed == 0


def test_a_list_that_does_not_match_costs_its_record(place, models):
    good = {"prompt": "one", "image_path": ["a.png", "b.png"], "rank": [0, 1]}
    records = [good, {**good, "rank": [0]}, {**good, "image_path": []}, {**good, "image_path": "a.png"}, good]
    table_of(place / "t.json", records)
    _, rows = score(place, models, source="t.json")
    assert [bool(row["error"]) for row in rows] == [False] * 2 + [True] * 4 + [False] * 2


def test_the_number_of_records_does_not_depend_on_the_columns_that_are_read(place):
    good = {"prompt": "one", "image_path": ["a.png", "b.png"], "rank": [0, 1]}
    table_of(place / "t.parquet", [good, {**good, "rank": [0]}, good])
    source = open_source(place / "t.parquet")
    for columns in (["prompt"], ["prompt", "rank"]):
        found = list(source.records(lambda _: True, columns))
        assert [number for number, *_ in found] == list(range(6))
        assert [isinstance(record, str) for _, record, _ in found] == (
            [False, False, "rank" in columns, "rank" in columns, False, False]
        )
    assert source.count() == 6


def test_pick_a_pic(place, models):
    whole = (place / "a.png").read_bytes(), (place / "b.png").read_bytes()
    record = {"caption": "one", "jpg_0": whole[0], "jpg_1": whole[1], "label_0": 0.0, "label_1": 1.0}
    record |= {"has_label": True, "image_0_url": "https://x/0", "image_1_url": "https://x/1"}
    tie = {**record, "caption": "two", "label_0": 0.5, "label_1": 0.5}
    unknown = {**record, "caption": "three", "has_label": False}
    pq.write_table(pa.Table.from_pylist([record, tie, unknown]), place / "t.parquet")
    _, rows = score(place, models, source="t.parquet", keep=["rank", "image_url"])
    found = [(row["prompt"], row["width"], row["rank"], row["image_url"]) for row in rows]
    assert found[:2] == [("one", 31, "2", "https://x/0"), ("one", 32, "1", "https://x/1")]
    assert [row[2] for row in found[2:]] == ["1", "1", None, None]
    with pytest.raises(InputError, match="Pick-a-Pic"):
        read_rankings(place / "t.parquet")
    (place / "t.csv").write_text(
        "caption,jpg_0,jpg_1,label_0,label_1,has_label\none,a.png,b.png,0,1,True\ntwo,a.png,b.png,0,1,False\n"
    )
    _, rows = score(place, models, source="t.csv", keep=["rank"], out="csv.parquet")
    assert [row["rank"] for row in rows] == ["2", "1", None, None]


def test_ties_are_refused_for_training_alone(place):
    tied = {"id": "1", "prompt": "one", "generations": ["a.png", "b.png"], "ranking": [1, 1]}
    table_of(place / "t.json", [tied])
    assert read_rankings(place / "t.json", allow_ties=True)[0].ranking == (1, 1)
    with pytest.raises(InputError, match="prefers no image to another"):
        RankedImages(place / "t.json", Preprocess(32))


@pytest.mark.parametrize("case", [str, str.upper, str.title])
def test_rankings_are_found_whatever_the_case_of_their_columns(place, case):
    lists = {"id": "1", "prompt": "one", "generations": ["a.png", "b.png"], "ranking": [2, 1]}
    table_of(place / "t.jsonl", [{case(name): value for name, value in lists.items()}])
    rows = [
        {"prompt_id": "1", "prompt": "one", "image_path": f"{x}.png", "rank": r}
        for x, r in (("a", 2), ("b", 1))
    ]
    table_of(place / "t.tsv", [{case(name): value for name, value in row.items()} for row in rows])
    for source in ("t.jsonl", "t.tsv"):
        (ranked,) = read_rankings(place / source)
        assert (ranked.ranking, [path.name for path in ranked.generations]) == ((2, 1), ["a.png", "b.png"])


PROMPT = "a red\u2028circle, “bright”"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("p.csv", f'id,text\n1,"{PROMPT}"\n2,two\n'.encode()),
        ("p.CSV", f"Text;id\r\n{PROMPT};1\r\ntwo;2".encode("utf-16")),
        ("p.tsv", f"n\tPrompt\n1\t{PROMPT}\n2\ttwo\n".encode("utf-8-sig")),
        ("p.ndjson", "".join(json.dumps({"caption": text}) + "\n" for text in (PROMPT, "two")).encode()),
        ("p.JSON", json.dumps([PROMPT, "two"]).encode("utf-8-sig")),
        ("p.JSON", json.dumps([{"prompt": PROMPT, "text": "x"}, {"prompt": "two"}]).encode("utf-16")),
        ("p.jsonl", f'\ufeff{{"prompt": "{PROMPT}"}}\n\n"two"\n'.encode()),
        ("p.TXT", f"\ufeff{PROMPT} \r\n\r\ntwo".encode()),
        ("p.txt", f"{PROMPT}\ntwo\n".encode("utf-16")),
    ],
)
def test_prompts_are_read_from_what_the_name_says(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    assert read_prompts(tmp_path / name) == [PROMPT, "two"]
    assert [getattr(row, "prompt", row) for row in read_rows(tmp_path / name, ())] == [PROMPT, "two"]


def test_prompts_of_parquet_and_of_a_named_column_and_encoding(tmp_path):
    table_of(tmp_path / "p.parquet", [{"TEXT": "one", "other": "uno"}])
    assert read_prompts(tmp_path / "p.parquet") == ["one"]
    assert read_prompts(tmp_path / "p.parquet", "other") == ["uno"]
    (tmp_path / "p.csv").write_bytes("wort\nKäfer\n".encode("cp1252"))
    assert read_prompts(tmp_path / "p.csv", "wort", "cp1252") == ["Käfer"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.csv", b"a cat\na dog\n", "record 0 has no prompt.*it has a cat"),
        ("p.csv", b"prompt\na cat, on a mat\n", "2 cells for 1 columns"),
        ("p.csv", b'prompt\n"a cat\na dog\n', "line 2 is not valid CSV"),
        ("p.csv", b"prompt,n\na cat,1\n,2\n", "record 1 has no prompt: .*an empty cell"),
        ("p.csv", b"prompt\nK\xe4fer\n", "name the encoding"),
        ("p.jsonl", b'{"prompt": "one", "caption": "x"}\n{"caption": "y"}\n', "record 1 has no prompt"),
        ("p.txt", b'{"prompt": "one"}\n', "is a JSON object: name a file of such lines .jsonl"),
        ("p.xlsx", b"PK", "cannot be read as prompts: expected a name that ends in"),
        ("prompts", b"one\n", "cannot be read as prompts: expected a name that ends in"),
    ],
)
def test_what_cannot_be_read_as_prompts_is_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_prompts(tmp_path / name)


def test_tune_and_compare_read_the_columns_of_a_table(tmp_path, capsys):
    (tmp_path / "p.csv").write_text("id;prompt\n1;\n")
    tune = ["tune", "tiny/refl", f"prompts={tmp_path / 'p.csv'}", f"output={tmp_path / 'out'}"]
    assert "record 0 has no prompt" in error_of(capsys, *tune)
    assert "a record with 'wort'" in error_of(capsys, *tune, "prompt_column=wort")
    assert "no text encoding" in error_of(capsys, *tune, "encoding=nope")
    compare = ["compare", "nowhere", "elsewhere", "--prompts", tmp_path / "p.csv"]
    assert "record 0 has no prompt" in error_of(capsys, *compare)
    assert "a record with 'wort'" in error_of(capsys, *compare, "--prompt-column", "wort")
    assert "no text encoding" in error_of(capsys, *compare, "--encoding", "nope")


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_pairs_come_from_any_table(place, kind):
    table_of(place / f"t.{kind}", [{"File_Name": f"{name}.png", "Text": f"of {name}"} for name in "ab"])
    pairs = ImagePairs(place / f"t.{kind}", Preprocess(32))
    assert [(text, path) for text, path, _ in pairs.pairs] == [
        ("of a", place / "a.png"),
        ("of b", place / "b.png"),
    ]


def test_a_pair_without_a_text_takes_no_other_column(place):
    records = [{"image": "a.png", "text": "one", "caption": "x"}, {"image": "b.png", "caption": "y"}]
    table_of(place / "t.jsonl", records)
    with pytest.raises(InputError, match="record 1: the row has no prompt"):
        ImagePairs(place / "t.jsonl", Preprocess(32))
