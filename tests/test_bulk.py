"""Tables of images scored in bulk: the scores of `score_pairs`, in order, whatever single rows hold."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import PIL.Image
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from conftest import CONFIGS, PROMPTS, TABLE_ROWS, pictures, small_scorer
from test_cli import error_of
from typer.testing import CliRunner

import imagereward as RM
import imagereward.checkpoints.loading
import imagereward.ensembles
from imagereward.bulk import job, score_table
from imagereward.cli import app
from imagereward.errors import CheckpointError, DeviceError, InputError, OutputError

ROWS = TABLE_ROWS


def write_lines(path: Path, records: list) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def read_lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def score(directory: Path, models, *kinds: str, out="out.parquet", source="table.jsonl", **options):
    """Score in this process, in parts of 8 rows and batches of 4; (summary, rows)."""
    options = {"part_rows": 8, "batch_size": 4, "workers": 0, "device": "cpu", "progress": False, **options}
    names = [models[kind] for kind in kinds or ["ImageReward"]]
    summary = score_table(directory / source, directory / out, names, **options)
    return summary, pq.read_table(directory / out).to_pylist() if out.endswith(".parquet") else None


def expected(directory: Path, models, kind: str, source="table.jsonl", part=8, batch=4) -> list[float]:
    """`score_pairs` of a loaded scorer on the rows of each part."""
    scorer = RM.load(models[kind], "cpu")
    records = read_lines(directory / source)
    scores: list[float] = []
    for start in range(0, len(records), part):
        rows = records[start : start + part]
        images = [str(directory / row["image"]) for row in rows]
        scores += scorer.score_pairs([row["prompt"] for row in rows], images, batch_size=batch)
    return scores


@pytest.mark.parametrize("kind", CONFIGS)
def test_scores_are_exactly_those_of_score_pairs(table, models, kind):
    _, rows = score(table, models, kind)
    assert [row[f"score:{kind}"] for row in rows] == expected(table, models, kind)
    assert not any(row["error"] for row in rows)


def test_several_models_score_in_one_pass_what_each_scores_alone(table, models):
    _, rows = score(table, models, "ImageReward", "CLIP", "HPS", "Aesthetic")
    for kind in ("ImageReward", "CLIP", "HPS", "Aesthetic"):
        np.testing.assert_allclose(
            [row[f"score:{kind}"] for row in rows], expected(table, models, kind), atol=1e-6
        )


def test_rows_keep_their_order_and_say_what_was_scored(table, models):
    summary, rows = score(table, models, keep=["generator"])
    scorer, records = RM.load(models["ImageReward"], "cpu"), read_lines(table / "table.jsonl")
    assert (summary.rows, summary.failed, summary.truncated) == (ROWS, 0, 0)
    assert [row["row"] for row in rows] == list(range(ROWS))
    assert [row["id"] for row in rows] == [record["id"] for record in records]
    assert [row["prompt"] for row in rows] == [record["prompt"] for record in records]
    assert [row["image"] for row in rows] == [str(table / record["image"]) for record in records]
    assert [row["generator"] for row in rows] == [str(record["generator"]) for record in records]
    assert [row["tokens"] for row in rows] == scorer.count_tokens([record["prompt"] for record in records])
    sizes = [picture.size for picture in pictures(ROWS - 5)]
    assert [(row["width"], row["height"]) for row in rows] == [sizes[i % (ROWS - 5)] for i in range(ROWS)]


def test_long_prompts_are_flagged_and_counted(table, models):
    records = read_lines(table / "table.jsonl")
    records[4]["prompt"] = "word " * 60
    write_lines(table / "table.jsonl", records)
    summary, rows = score(table, models)
    assert [row["row"] for row in rows if row["truncated"]] == [4]
    assert (summary.truncated, rows[4]["tokens"]) == (1, 62)


def test_decoding_in_processes_changes_nothing(table, models):
    score(table, models, "ImageReward", "HPS", out="a.parquet")
    score(table, models, "ImageReward", "HPS", out="b.parquet", workers=2)
    assert pq.read_table(table / "a.parquet").equals(pq.read_table(table / "b.parquet"))


def test_each_bad_row_costs_itself_and_says_why(table, models, monkeypatch):
    records = read_lines(table / "table.jsonl")
    (table / "images/junk.png").write_bytes(b"junk")
    whole = (table / "images/0.png").read_bytes()
    (table / "images/half.png").write_bytes(whole[: len(whole) // 2])
    (table / "images/empty.png").touch()
    PIL.Image.new("RGB", (1, 60_000)).save(table / "images/thread.png")
    monkeypatch.setattr(PIL.Image, "MAX_IMAGE_PIXELS", 10_000_000)
    bad = {
        1: ({"image": "images/none.png"}, "does not exist"),
        2: ({"image": "images/junk.png"}, "not an image"),
        3: ({"image": "images/half.png"}, "damaged"),
        7: ({"image": "images/empty.png"}, "empty"),
        8: ({"image": None}, "no image"),
        9: ({"image": "images"}, "is a directory"),
        13: ({"image": "images/thread.png"}, "too narrow"),
        10: ({"image": "https://example.com/a.png"}, "URL"),
        11: ({"prompt": None}, "no prompt"),
        12: ({"prompt": 3}, "no prompt"),
        14: ({"prompt": "half a pair: \ud800"}, "not valid text"),
        22: ({"image": "images/junk.png"}, "not an image"),
    }
    for place, (change, _) in bad.items():
        records[place] |= change
    write_lines(table / "table.jsonl", records)
    lines = (table / "table.jsonl").read_text().splitlines(keepends=True)
    lines[16] = "{not json\n"
    lines[17] = "[1]\n"
    (table / "table.jsonl").write_text("".join(lines))
    bad |= {16: ({}, "not JSON"), 17: ({}, "not an object")}
    summary, rows = score(table, models, "ImageReward", "CLIP")
    assert {row["row"] for row in rows if row["error"]} == set(bad)
    for place, (_, reason) in bad.items():
        assert reason in rows[place]["error"]
        assert rows[place]["score:ImageReward"] is rows[place]["score:CLIP"] is None
    assert summary.failed == len(bad)
    scorer = RM.load(models["ImageReward"], "cpu")
    for row in rows:
        if not row["error"]:
            assert row["score:ImageReward"] == pytest.approx(
                scorer.score(row["prompt"], row["image"]), abs=1e-5
            )


def test_a_part_of_bad_rows_only_is_written(table, models):
    write_lines(table / "table.jsonl", [{"image": f"{i}.png", "prompt": "a"} for i in range(11)])
    summary, rows = score(table, models)
    assert (summary.failed, len(rows)) == (11, 11)


def test_a_score_that_is_not_finite_is_an_error_of_its_row(table, models, tmp_path):
    scorer = small_scorer("ImageReward")
    scorer.mlp.layers[-1].weight.data.fill_(float("nan"))
    broken = {**models, "broken": str(scorer.save_pretrained(tmp_path / "broken"))}
    summary, rows = score(table, broken, "CLIP", "broken")
    assert (summary.failed, summary.partly, summary.scored) == (0, ROWS, ROWS)
    assert f"none failed (the column error says why), {ROWS} scored, {ROWS} of them not by all" in str(
        summary
    )
    assert rows[0]["error"] == "not finite: the score of broken"
    assert rows[0]["score:broken"] is None
    assert rows[0]["score:CLIP"] == expected(table, models, "CLIP")[0]


def test_repeated_images_and_prompts_of_a_part_are_computed_once(table, models, monkeypatch):
    from imagereward.models.imagereward import ImageReward

    seen: dict[str, int] = {"images": 0, "prompts": 0}
    encode_images, encode_prompts = ImageReward.encode_images, ImageReward.encode_prompts

    def count_images(self, pixels):
        seen["images"] += len(pixels)
        return encode_images(self, pixels)

    def count_prompts(self, prompts):
        seen["prompts"] += len(prompts)
        return encode_prompts(self, prompts)

    monkeypatch.setattr(ImageReward, "encode_images", count_images)
    monkeypatch.setattr(ImageReward, "encode_prompts", count_prompts)
    records = [{"image": f"images/{i % 3}.png", "prompt": PROMPTS[i % 2]} for i in range(16)]
    write_lines(table / "table.jsonl", records)
    score(table, models)
    assert seen == {"images": 3 + 3, "prompts": 2 + 2}


def test_one_prompt_can_stand_for_all_rows(table, models):
    _, rows = score(table, models, prompt="a red bicycle")
    assert {row["prompt"] for row in rows} == {"a red bicycle"}
    scorer = RM.load(models["ImageReward"], "cpu")
    scores = scorer.score("a red bicycle", [row["image"] for row in rows])
    np.testing.assert_allclose([row["score:ImageReward"] for row in rows], scores, atol=1e-6)


def test_csv_and_json_lines_hold_the_same_as_parquet(table, models):
    records = read_lines(table / "table.jsonl")
    records[5] |= {"image": "none.png", "prompt": 'comma, "quote"\nnew line 日本'}
    write_lines(table / "table.jsonl", records)
    _, rows = score(table, models, keep=["generator"])
    score(table, models, keep=["generator"], out="out.jsonl")
    score(table, models, keep=["generator"], out="out.csv")
    assert read_lines(table / "out.jsonl") == rows
    read = pyarrow.csv.read_csv(
        table / "out.csv",
        parse_options=pyarrow.csv.ParseOptions(newlines_in_values=True),
        convert_options=pyarrow.csv.ConvertOptions(
            column_types=pq.read_schema(table / "out.parquet"),
            strings_can_be_null=True,
            quoted_strings_can_be_null=False,
        ),
    )
    assert read.to_pylist() == rows


def test_the_fingerprint_is_in_the_output_or_beside_it(table, models):
    score(table, models)
    inside = json.loads(pq.read_schema(table / "out.parquet").metadata[b"imagereward"])
    score(table, models, out="out.csv")
    assert json.loads((table / "out.csv.fingerprint.json").read_text()) == inside
    model = models["ImageReward"]
    assert inside["dtype"] == "float32"
    assert inside[f"preprocessing of {model}"]["size"] == 32
    assert len(inside[f"weights of {model}"][0]) == 64
    assert inside["version of torch"]


def test_two_devices_write_what_one_writes(table, models):
    score(table, models, out="a.parquet")
    score(table, models, out="b.parquet", device=["cpu", "cpu"])
    assert pq.read_table(table / "a.parquet").equals(pq.read_table(table / "b.parquet"))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"image_column": "picture"}, InputError, "no column 'picture'; it has id, image, prompt, generator"),
        ({"prompt_column": "words"}, InputError, "no column 'words'; it has id, image"),
        ({"keep": ["style"]}, InputError, "no column 'style'"),
        ({"keep": ["prompt"]}, InputError, "'prompt' cannot be kept"),
        ({"prompt": "a", "prompt_column": "prompt"}, InputError, "expected one of them"),
        ({"out": "out.txt"}, InputError, ".parquet, .jsonl, .csv"),
        ({"source": "none.jsonl"}, InputError, "none.jsonl does not exist"),
        ({"source": "images/0.png"}, InputError, "no table"),
        ({"dtype": "int8"}, InputError, "dtype"),
        ({"batch_size": 0}, InputError, "batch_size"),
        ({"part_rows": 0}, InputError, "part_rows"),
        ({"workers": -1}, InputError, "workers"),
        ({"engine": "spark"}, InputError, "'local' or 'ray'"),
        ({"cache": "c"}, InputError, "budget"),
        ({"device": "cuda:99"}, DeviceError, "cuda:99"),
        ({"device": ["cpu", "meta"]}, InputError, "one kind"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_written(table, models, options, error, words):
    before = sorted(table.rglob("*"))
    with pytest.raises(error, match=words.replace("[", r"\[")):
        score(table, models, **options)
    assert sorted(table.rglob("*")) == before


def test_an_unknown_model_and_one_named_twice_are_refused(table, models):
    with pytest.raises(CheckpointError, match="no known scorer"):
        score(table, {"ImageReward": "ImageReward-v9"})
    with pytest.raises(InputError, match="each once"):
        score(table, models, "CLIP", "CLIP")
    assert not list(table.glob("out*"))


def test_an_output_that_exists_is_kept_unless_told_to_overwrite(table, models):
    (table / "out.parquet").write_text("precious")
    with pytest.raises(OutputError, match="--overwrite"):
        score(table, models)
    assert (table / "out.parquet").read_text() == "precious"
    _, rows = score(table, models, overwrite=True)
    assert len(rows) == ROWS


def command(*arguments: object):
    return CliRunner().invoke(app, ["score-table", *map(str, arguments)], catch_exceptions=False)


def test_the_commands_exit_code_and_last_line_say_how_many_rows_failed(table, models):
    options = ("-m", models["ImageReward"], "-m", models["CLIP"], "--device", "cpu", "--workers", 0)
    result = command(table / "table.jsonl", "--out", table / "a.csv", *options)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1].endswith(
        "a.csv: 23 rows, none failed, 0 with a prompt that was cut"
    )
    (table / "images/1.png").write_bytes(b"junk")
    result = command(table / "table.jsonl", "--out", table / "b.csv", *options)
    assert result.exit_code == 3
    assert "23 rows, 2 failed" in result.stdout


def test_scorers_on_ray_are_refused_without_ray(table, models, capsys):
    arguments = ("score-table", table / "table.jsonl", "--out", table / "a.csv", "-m", models["CLIP"])
    message = error_of(capsys, *arguments, "--actors", 4)
    assert "actors=4 are scorers on Ray: expected engine='ray' beside it (--engine ray)" in message


def test_the_command_turns_errors_into_one_line(table, models, capsys):
    arguments = ("score-table", table / "table.jsonl", "--out", table / "a.csv", "-m", models["CLIP"])
    assert error_of(capsys, *arguments, "--image-column", "x").startswith("imagereward: ")


def test_progress_shows_rate_and_time_left_on_stderr(table, models):
    code = f"from imagereward.bulk import score_table; score_table({str(table / 'table.jsonl')!r},"
    code += f"{str(table / 'o.csv')!r}, {models['ImageReward']!r}, workers=0, part_rows=8)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "row/s" in result.stderr
    assert "23/23" in result.stderr
    assert not result.stdout


def test_the_commands_and_the_python_of_the_pages_run_as_written(tmp_path, models, monkeypatch, capsys):
    by_name = {"ImageReward-v1.0": models["ImageReward"], "Aesthetic": models["Aesthetic"]}

    def load(name, *arguments, **options):
        scorer = imagereward.checkpoints.loading.load(by_name[name], *arguments, **options)
        scorer.name = name
        return scorer

    monkeypatch.setattr(imagereward.ensembles, "load", load)
    monkeypatch.setattr(job, "load", load)
    monkeypatch.chdir(tmp_path)
    pages = [Path(__file__).parents[1] / name for name in ("README.md", "docs/bulk.md")]
    (shown,) = re.findall(r"```json\n(.*?)```", pages[1].read_text(), re.DOTALL)
    (tmp_path / "images.jsonl").write_text(shown)
    for line, picture in zip(shown.splitlines(), pictures(2), strict=True):
        path = Path(json.loads(line)["image"])
        path.parent.mkdir()
        picture.save(path)

    lines = [line for page in pages for line in page.read_text().splitlines() if "score-table images" in line]
    assert len(lines) == 3
    local = [line for line in lines if "--engine" not in line]  # Ray's is in test_bulk_ray.py
    for line in local:
        result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert "2 rows, none failed" in result.stdout
        assert set(pq.read_schema("scores.parquet").names) >= {"score:ImageReward-v1.0", "score:Aesthetic"}
        Path("scores.parquet").unlink()
    (block,) = re.findall(r"```python\n(.*?)```", pages[1].read_text(), re.DOTALL)
    exec(block, {"__name__": "__main__"})
    assert re.search(r"print\(summary\)  # (.*)", block).group(1) in capsys.readouterr().out
