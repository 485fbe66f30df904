"""Prompts that generators wrote into images and beside them: right, or an error; never the negative one."""

import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest
from comfyui_conditioning_corpus import CONDITIONINGS
from comfyui_graphs import graph
from comfyui_text_corpus import TEXTS_AND_SAMPLERS
from generation_files import A1111, NEGATIVE, RED, SETTINGS, png
from test_bulk import read_lines, score
from test_bulk_inputs import add
from typer.testing import CliRunner
from web_ui_corpus import SWARM, WEB_UIS

from imagereward.cli import app
from imagereward.errors import InputError
from imagereward.generation_metadata import prompt_of, prompt_of_text
from imagereward.generation_metadata.entries import MOST_TEXT

CORPUS = [*WEB_UIS, *CONDITIONINGS, *TEXTS_AND_SAMPLERS]


def test_the_corpus_has_every_writer_and_names_each_file_once():
    assert len({case.name for case in CORPUS}) == len(CORPUS) >= 100
    assert all((case.prompt is None) != (case.error is None) for case in CORPUS)


@pytest.mark.parametrize("case", CORPUS, ids=lambda case: case.name)
def test_a_file_of_the_corpus_gives_its_prompt_or_an_error(case, tmp_path):
    case.write(tmp_path / "x.png")
    if case.prompt is not None:
        assert prompt_of(tmp_path / "x.png") == case.prompt
        return
    with pytest.raises(InputError) as raised:
        prompt_of(tmp_path / "x.png")
    assert case.error in str(raised.value)
    assert "x.txt" in str(raised.value)  # what to do


def test_pictures_that_were_scored_with_wrong_prompts_are_scored_with_theirs(models, tmp_path):
    shutil.copytree(Path(__file__).with_name("pictures_with_prompts"), tmp_path / "folder")
    _, rows = score(tmp_path, models, source="folder")
    found = {row["id"].split("-")[0]: row["prompt"] for row in rows}
    both = f"{RED}, on white"
    assert found == dict.fromkeys(found, RED) | {"05": f"{RED}, shiny"} | dict.fromkeys(
        ["22", "23", "24", "26"], both
    )
    assert len(found) == 12


def test_a_folder_of_the_corpus_is_scored_with_these_prompts(tmp_path, models):
    (tmp_path / "folder").mkdir()
    for number, case in enumerate(CORPUS):
        case.write(tmp_path / f"folder/{number:03}.png")
    summary, rows = score(tmp_path, models, source="folder", part_rows=64)
    assert [row["prompt"] for row in rows] == [case.prompt for case in CORPUS]
    assert [bool(row["error"]) for row in rows] == [case.error is not None for case in CORPUS]
    assert summary.failed == sum(case.error is not None for case in CORPUS)


def test_members_of_a_shard_without_caption_are_read_like_files(tmp_path, models):
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for number, case in enumerate(CORPUS):
            case.write(tmp_path / "x.png")
            add(archive, f"{number:03}.png", (tmp_path / "x.png").read_bytes())
    _, rows = score(tmp_path, models, source="s.tar", part_rows=64)
    assert [row["prompt"] for row in rows] == [case.prompt for case in CORPUS]
    assert "s.tar/" in next(row["error"] for row in rows if row["error"])


def test_captions_of_a_shard_are_infotext_or_words_and_go_before_metadata(tmp_path, models):
    png({"parameters": A1111})(tmp_path / "x.png")
    data = (tmp_path / "x.png").read_bytes()
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for key, member, text in (
            ("0", "txt", A1111.replace("red", "blue")),
            ("1", "txt", "(a square:1.2)"),
            ("2", None, ""),
            ("3", "txt", f"Negative prompt: {NEGATIVE}\n{SETTINGS}"),
        ):
            add(archive, f"{key}.png", data)
            if member:
                add(archive, f"{key}.{member}", text.encode())
    _, rows = score(tmp_path, models, source="s.tar")
    assert [row["prompt"] for row in rows] == ["a blue circle", "(a square:1.2)", RED, None]
    assert "is empty" in rows[3]["error"]


def test_captions_of_a_shard_are_found_though_its_first_sample_has_none(tmp_path, models):
    png({"parameters": A1111})(tmp_path / "x.png")
    with tarfile.open(tmp_path / "s.tar", "w") as archive:
        for key, text in (("0", None), ("1", b"a square"), ("2", None)):
            add(archive, f"{key}.png", (tmp_path / "x.png").read_bytes())
            if text:
                add(archive, f"{key}.caption", text)
    _, rows = score(tmp_path, models, source="s.tar")
    assert [row["prompt"] for row in rows] == [RED, "a square", RED]


@pytest.mark.parametrize(
    ("inside", "beside", "prompt"),
    [
        ({}, {"x.txt": A1111}, RED),
        ({"parameters": A1111}, {"x.txt": A1111}, RED),
        ({"parameters": A1111}, {"x.txt": A1111.replace("red", "blue")}, "different prompts"),
        ({"parameters": A1111}, {"x.txt": "a (blue) circle\n"}, "a (blue) circle"),
        ({"parameters": A1111}, {"x.caption": "a blue circle"}, "a blue circle"),
        ({"parameters": A1111}, {"x.caption": "a blue circle", "x.txt": A1111}, "a blue circle"),
        ({}, {"x.caption": "a blue circle", "x.txt": "a square"}, "differ: x.txt and x.caption"),
        ({}, {"x.json": json.dumps(SWARM)}, RED),
        ({}, {"x.swarm.json": json.dumps(SWARM)}, RED),
        ({}, {"x.txt": json.dumps(SWARM)}, RED),
        ({}, {"x.json": json.dumps(graph())}, RED),
        ({}, {"x.json": json.dumps({"caption": "a square"})}, "a square"),
        ({"parameters": A1111}, {"x.json": '{"labels": [1, 2]}'}, RED),
        ({}, {"x.json": '{"labels": [1, 2]}'}, "unknown layout"),
        ({"parameters": A1111}, {"x.txt": " \n"}, "x.txt: the text is empty"),
        ({}, {"x.txt": f"Negative prompt: {RED}\n{SETTINGS}"}, "is empty"),
        ({}, {"x.txt": b"\xff\xfe" + A1111.encode("utf-16-le")}, RED),
        ({}, {"x.txt": b"\xef\xbb\xbf" + A1111.replace("\n", "\r\n").encode()}, RED),
        ({}, {"x.txt": b"caf\xe9"}, "UTF-8"),
        ({}, {"x.txt": b"\0\0a"}, "zero bytes"),
        ({}, {"x.txt": b"a" * (MOST_TEXT + 1)}, "too many"),
        ({}, {"x.txt": "Portrait: a woman, Style: oil, Light: 1"}, "Portrait: a woman, Style: oil, Light: 1"),
        ({}, {"x.txt": "{red|blue} circle, [shiny]"}, "{red|blue} circle, [shiny]"),
    ],
)  # fmt: skip
def test_files_beside_an_image_go_by_a_stated_order(tmp_path, inside, beside, prompt):
    png(inside)(tmp_path / "x.png")
    for name, text in beside.items():
        (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    try:
        assert prompt_of(tmp_path / "x.png") == prompt
    except InputError as error:
        assert prompt in str(error)  # noqa: PT017 - a wrong prompt is no InputError


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_a_pipe_or_directory_beside_an_image_is_an_error_at_once(tmp_path, make):
    png({"parameters": A1111})(tmp_path / "x.png")
    make(tmp_path / "x.txt")
    with pytest.raises(InputError, match=r"x\.txt: it cannot be read: .* not a regular file"):
        prompt_of(tmp_path / "x.png")


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("a red circle", "a red circle"),
        ("a  red circle , on white,", "a  red circle , on white,"),  # without markup nothing changes
        ("((a red)) [circle]", "a red circle"),
        ("a (red:1.2) (circle :0.8)", "a red circle"),
        (r"circle \(shape\), \[x\]", "circle (shape), [x]"),
        ("a smile :) here", "a smile :) here"),
        ("ratio 16:9, at 12:30", "ratio 16:9, at 12:30"),
        ("[a square:a red circle:0.5]", "a red circle"),
        ("a circle[, shiny:0.3]", "a circle, shiny"),
        ("a [shiny ::0.3]circle", "a circle"),
        ("[a red circle:a square:25]", "a red circle"),  # of 20 steps
        ("[a square:a red circle:10]", "a red circle"),
        ("a [red|blue] circle", "a red, blue circle"),
        ("[a (red:1.1):[a blue:a green:0.5]:0.2] circle", "a green circle"),
        ("red BREAK blue", "red, blue"),
        ("a cat :1.2 AND a dog:0.8 AND blurry :-1", "a cat, a dog"),
        ("<lora:a:1><lora:b-c_d.e:0.5:0.7> red, <hypernet:x:1>, circle", "red, circle"),
        ("a (red circle", "a red circle"),
        ("red, (:1.2), circle", "red, circle"),
        ("BREAKFAST on the SAND", "BREAKFAST on the SAND"),
    ],
)
def test_a_web_uis_markup_is_stripped_or_kept(written, words):
    infotext = f"{written}\nNegative prompt: {NEGATIVE}\n{SETTINGS}"
    assert prompt_of_text(infotext) == words
    assert prompt_of_text(infotext, "keep") == written
    assert prompt_of_text(written) == written  # a caption in plain words stays


@pytest.mark.parametrize("written", ["a AND_PERP b", "<lora:x:1>", "(" * 200 + "x"])
def test_markup_that_leaves_no_certain_words_is_an_error(written):
    with pytest.raises(InputError, match="no prompt that is certain"):
        prompt_of_text(f"{written}\n{SETTINGS}")


def test_the_choice_of_markup_reaches_rows_and_the_fingerprint(tmp_path, models):
    (tmp_path / "folder").mkdir()
    png({"parameters": A1111.replace("red", "(red:1.2)")})(tmp_path / "folder/x.png")
    _, strip = score(tmp_path, models, source="folder")
    _, keep = score(tmp_path, models, source="folder", out="keep.parquet", markup="keep")
    assert [strip[0]["prompt"], keep[0]["prompt"]] == [RED, "a (red:1.2) circle"]
    arguments = [tmp_path / "folder", "--out", tmp_path / "cli.jsonl", "--model", models["ImageReward"]]
    result = CliRunner().invoke(
        app, ["score-table", *map(str, arguments), "--markup", "keep", "--workers", "0"]
    )
    assert result.exit_code == 0, result.output
    assert read_lines(tmp_path / "cli.jsonl")[0]["prompt"] == "a (red:1.2) circle"
    with pytest.raises(InputError, match="expected 'strip' or 'keep'"):
        score(tmp_path, models, source="folder", out="no.parquet", markup="yes")
