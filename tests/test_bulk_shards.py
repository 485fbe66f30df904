"""Shards as people have them: no sample is left out, merged with others or refused because of another."""

import json
import tarfile

import numpy as np
import pytest
from test_bulk import score
from test_bulk_folders import PROMPT, alone, by_id, encoded, lay, pack

from imagereward.errors import InputError


def test_members_that_a_mac_adds_are_no_samples(tmp_path, models):
    members = [("._0.png", b"\0\5\26\7"), ("0.png", 0), ("._0.txt", b"\0\5\26\7"), ("0.txt", PROMPT)]
    members += [("__MACOSX/0.png", b"x"), ("./.DS_Store", b"x"), ("./a/1.png", 1), ("./a/1.txt", "a disc")]
    pack(tmp_path / "mac.tar", members)
    summary, rows = score(tmp_path, models, source="mac.tar")
    assert [(row["id"], row["prompt"]) for row in rows] == [("0", PROMPT), ("a/1", "a disc")]
    assert rows[0]["score:ImageReward"] == pytest.approx(alone(PROMPT, encoded(0)), abs=1e-5)
    assert summary.failed == 0
    assert summary.skipped == {"hidden (.*, ._*, __MACOSX …)": 4}


@pytest.mark.parametrize("missing", ["caption", "image", "both", "json"])
def test_no_sample_speaks_for_the_others(tmp_path, models, missing):
    first = {
        "caption": [("0.jpg", 0)],
        "image": [("0.txt", "none"), ("0.json", '{"key": 1}')],
        "both": [("0.cls", "3")],
        "json": [("0.png", 0), ("0.json", "{")],
    }[missing]
    pack(tmp_path / "s.tar", [*first, ("1.jpg", 1), ("1.txt", PROMPT), ("2.jpg", 2), ("2.caption", "a disc")])
    for options in ({}, {"image_column": "jpg"}):
        summary, rows = score(tmp_path, models, source="s.tar", overwrite=True, **options)
        assert [bool(row["error"]) for row in rows] == [True, False, False]
        assert [row["prompt"] for row in rows[1:]] == [PROMPT, "a disc"]
        assert rows[2]["score:ImageReward"] == pytest.approx(alone("a disc", encoded(2)), abs=1e-5)
        assert summary.failed == 1
    _, rows = score(tmp_path, models, source="s.tar", overwrite=True, prompt_column="txt")
    assert [bool(row["error"]) for row in rows] == [True, False, True]  # named, it is the only one


def test_names_with_dots_are_merged_only_where_they_belong_together(tmp_path, models):
    members = [("d.v1.5.png", 0), ("d.v1.5.txt", "one"), ("d.v1.6.png", 1), ("d.v1.6.txt", "two")]
    members += [("e.final.png", 2), ("e.final.txt", "three"), ("e.draft.png", 3), ("e.draft.txt", "four")]
    members += [("f.png", 4), ("f.mask.png", 5), ("f.txt", "five"), ("2024.01.02.png", 6)]
    members += [("2024.01.02.txt", "six"), ("x.y/g.png", 7), ("x.y/g.txt", "seven")]
    pack(tmp_path / "s.tar", members)
    summary, rows = score(tmp_path, models, source="s.tar")
    wanted = {"d.v1.5": ("one", 0), "d.v1.6": ("two", 1), "e.final": ("three", 2), "e.draft": ("four", 3)}
    wanted |= {"f": ("five", 4), "2024.01.02": ("six", 6), "x.y/g": ("seven", 7)}
    assert {name: row["prompt"] for name, row in by_id(rows).items()} == {
        n: p for n, (p, _) in wanted.items()
    }
    scores = [by_id(rows)[name]["score:ImageReward"] for name in wanted]
    np.testing.assert_allclose(scores, [alone(p, encoded(s)) for p, s in wanted.values()], atol=1e-5)
    assert summary.skipped == {"pictures beyond the first of their row (merged)": 1}


def test_members_of_one_name_are_an_error_of_their_row(tmp_path, models):
    members = [
        ("a.png", 0),
        ("a.txt", "one"),
        ("b.png", 1),
        ("b.txt", "two"),
        ("a.txt", "three"),
        ("b.PNG", 2),
    ]
    pack(tmp_path / "s.tar", [*members, ("c.png", 3), ("c.txt", "four")])
    _, rows = score(tmp_path, models, source="s.tar")
    assert ["which one is meant" in (row["error"] or "") for row in rows] == [True, True, False]


def test_samples_whose_members_are_apart_are_whole(tmp_path, models):
    pack(tmp_path / "s.tar", [("a.png", 0), ("b.png", 1), ("a.txt", "one"), ("b.txt", "two")])
    summary, rows = score(tmp_path, models, source="s.tar")
    assert [(row["id"], row["prompt"], row["error"]) for row in rows] == [
        ("a", "one", None),
        ("b", "two", None),
    ]
    assert summary.rows == 2


def test_keys_of_json_replace_no_member(tmp_path, models):
    lay(tmp_path, {"other.png": 5})
    described = json.dumps({"image": "other.png", "txt": "wrong", "__key__": "wrong", "png": "other.png"})
    pack(tmp_path / "s.tar", [("a.png", 0), ("a.txt", "one"), ("a.json", described)])
    _, rows = score(tmp_path, models, source="s.tar")
    assert [(row["id"], row["prompt"]) for row in rows] == [("a", "one")]
    assert rows[0]["score:ImageReward"] == pytest.approx(alone("one", encoded(0)), abs=1e-5)


def test_the_picture_goes_before_its_mask(tmp_path, models):
    pack(tmp_path / "s.tar", [("a.depth.png", 1), ("a.png", 0), ("a.txt", "one")])
    _, rows = score(tmp_path, models, source="s.tar")
    assert rows[0]["score:ImageReward"] == pytest.approx(alone("one", encoded(0)), abs=1e-5)


def test_of_two_rows_of_one_image_the_one_without_a_prompt_alone_has_an_error(tmp_path, models):
    lay(tmp_path, {"x.png": 0})
    for order in ("ab", "ba"):
        prompts = {"a": {"image": "x.png", "prompt": "one"}, "b": {"image": "x.png"}}
        pack(tmp_path / f"{order}.tar", [(f"{name}.json", json.dumps(prompts[name])) for name in order])
        _, rows = score(tmp_path, models, source=f"{order}.tar", out=f"{order}.parquet")
        found = {row["prompt"]: row for row in rows}
        assert found["one"]["error"] is None
        assert found["one"]["score:ImageReward"] == pytest.approx(alone("one", encoded(0)), abs=1e-5)
        assert found[None]["score:ImageReward"] is None
        assert "prompt" in found[None]["error"]


def test_json_that_is_no_object_is_an_error_of_its_row(tmp_path, models):
    pack(
        tmp_path / "s.tar",
        [("a.png", 0), ("a.txt", "one"), ("a.json", "[[12, 30]]"), ("b.png", 0), ("b.txt", "two")],
    )
    summary, rows = score(tmp_path, models, source="s.tar")
    assert summary.failed == 1
    assert "a.json cannot be read: it holds a list; expected an object" in rows[0]["error"]
    assert rows[1]["error"] is None


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-8"])
def test_captions_with_a_byte_order_mark_are_read_as_they_are_meant(tmp_path, models, encoding):
    pack(tmp_path / "s.tar", [("a.png", 0), ("a.txt", "café".encode(encoding))])
    _, rows = score(tmp_path, models, source="s.tar")
    assert rows[0]["prompt"] == "café"


def test_pictures_that_cannot_be_decoded_are_errors_and_others_of_the_row_go_first(tmp_path, models):
    members = [("a.heic", b"x"), ("a.txt", "one"), ("b.heic", b"x"), ("b.png", 1), ("b.txt", "two")]
    pack(tmp_path / "s.tar", [*members, ("c.png", 2), ("c.txt", "three"), ("c.cls", "1"), ("c.npy", b"x")])
    summary, rows = score(tmp_path, models, source="s.tar")
    assert [bool(row["error"]) for row in rows] == [True, False, False]
    assert summary.skipped == {
        "pictures beyond the first of their row (merged)": 1,
        ".cls (no picture, no text)": 1,
        ".npy (no picture, no text)": 1,
    }


def test_links_in_archives_are_followed_or_counted(tmp_path, models):
    path = pack(tmp_path / "s.tar", [("a/0.png", 0), ("a/0.txt", "one")])
    with tarfile.open(path, "a") as archive:
        for name, target, kind in [
            ("b.png", "a/0.png", tarfile.SYMTYPE),
            ("b.txt", "a/0.txt", tarfile.LNKTYPE),
            ("c.png", "../outside.png", tarfile.SYMTYPE),
            ("d.png", "d.png", tarfile.SYMTYPE),
            ("e.png", "", tarfile.FIFOTYPE),
        ]:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            archive.addfile(member)
    lay(tmp_path, {"outside.png": 4})
    summary, rows = score(tmp_path, models, source="s.tar")
    assert {row["id"]: row["prompt"] for row in rows} == {"a/0": "one", "b": "one"}
    assert rows[0]["score:ImageReward"] == pytest.approx(rows[1]["score:ImageReward"])
    assert summary.skipped == {"members that are links to nothing, devices or sparse": 3}


def test_archives_that_are_cut_off_or_joined_lose_nothing_silently(tmp_path, models):
    whole = pack(
        tmp_path / "s.tar",
        [(f"{i}.{kind}", i if kind == "png" else "x") for i in range(3) for kind in ("png", "txt")],
    )
    data = whole.read_bytes()
    other = pack(tmp_path / "o.tar", [("9.png", 9), ("9.txt", "x")]).read_bytes()
    (tmp_path / "joined.tar").write_bytes(data + other)
    with pytest.raises(InputError, match="consists of several tar files"):
        score(tmp_path, models, source="joined.tar")
    damaged = bytearray(data)
    with tarfile.open(whole) as archive:
        offset = archive.getmember("1.png").offset
        end = archive.getmembers()[-1].offset_data + 512
    damaged[offset + 3] ^= 0xFF
    (tmp_path / "damaged.tar").write_bytes(damaged)
    with pytest.raises(InputError, match="damaged there"):
        score(tmp_path, models, source="damaged.tar")
    (tmp_path / "cut.tar").write_bytes(data[:end])
    summary, rows = score(tmp_path, models, source="cut.tar")
    assert (len(rows), summary.skipped) == (3, {"shards without an end mark (cut off?)": 1})
