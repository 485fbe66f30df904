"""Evaluating inpainting: results/MODEL/, score-table with masks, compare, and what is refused."""

import csv
import json
import shutil
import subprocess
import sys
import threading
from http.server import ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pipelines
import pytest
from PIL import Image
from scipy import stats
from test_single_server import Handler
from typer.testing import CliRunner

from imagereward.bulk.masked import reads_masks, score_masked_table
from imagereward.cli import app
from imagereward.errors import InputError, OutputError, RemoteError
from imagereward.inpainting.layout import read_layout
from imagereward.inpainting.measures import open_painted, outside
from imagereward.inpainting.results import evaluate_results, page, write_results
from imagereward.inpainting.writing import write_data
from imagereward.rewards.inpainting import Boundary, Preservation
from imagereward.scoring.api import PairScorer
from imagereward.tuning.data.prompts import read_rows
from imagereward.tuning.evaluation.compare import compare
from imagereward.tuning.evaluation.comparison_page import page as comparison_page

REWARDS = {"boundary": Boundary(), "preservation": Preservation()}


def array(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), float) / 255


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five rows: "same" repeats the originals, "moved" adds noise, and lacks its last image."""
    out = tmp_path_factory.mktemp("results") / "set"
    write_data(out, "shapes", count=5, progress=False)
    rng = np.random.default_rng(0)
    for model in ("same", "moved"):
        (out / "results" / model).mkdir(parents=True)
        for row in read_layout(out)[: 4 if model == "moved" else None]:
            path = out / "results" / model / f"{row.name}.png"
            if model == "same":
                shutil.copy(row.image, path)
            else:
                noise = rng.integers(-40, 40, (64, 64, 3))
                pixels = np.clip(np.asarray(Image.open(row.image), int) + noise, 0, 255)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return out


def test_measures_outside_the_mask_equal_numpy(folder):
    for row in read_layout(folder)[:4]:
        path = folder / "results/moved" / f"{row.name}.png"
        painted = open_painted(row.prompt, path, row.image, row.mask, row.where)
        found = outside(painted)
        kept = np.asarray(Image.open(row.mask)) < 128
        error = ((array(path) - array(row.image)) ** 2)[kept].mean()  # over three channels
        assert found["mse"] == pytest.approx(error, rel=1e-4)
        assert found["psnr"] == pytest.approx(10 * np.log10(1 / error), rel=1e-4)


def test_an_unknown_measure_is_refused_once_and_not_in_every_record(folder):
    with pytest.raises(InputError, match="measure 'ssim': expected one of mse, psnr, lpips"):
        evaluate_results(folder, REWARDS, measures=("ssim",), progress=False)


def test_a_column_without_a_name_is_no_original(folder, tmp_path):
    row = read_layout(folder)[0]
    lines = [",prompt,image,mask", f"0,{row.prompt},{row.image},{row.mask}"]
    (tmp_path / "rows.csv").write_text("\n".join(lines))
    score_masked_table(tmp_path / "rows.csv", tmp_path / "out.csv", {"boundary": Boundary()}, progress=False)
    with open(tmp_path / "out.csv", newline="") as file:
        (found,) = csv.DictReader(file)
    assert found["error"] == ""
    assert float(found["score:boundary"]) <= 0


def test_results_have_records_intervals_files_and_a_page(folder, tmp_path):
    found = evaluate_results(folder, REWARDS, progress=False)
    assert found.models == ["moved", "same"]
    lines = {(line["model"], line["measure"]): line for line in found.summary()}
    moved = found.values("moved", "preservation")
    assert np.isnan(moved[4])
    assert lines["moved", "preservation"]["count"] == 4
    mean = moved[:4].mean()
    low, high = stats.t.interval(0.95, 3, mean, stats.sem(moved[:4]))
    line = lines["moved", "preservation"]
    assert (line["mean"], line["low"], line["high"]) == pytest.approx((mean, low, high))
    same = lines["same", "preservation"]
    assert same["mean"] == pytest.approx(0, abs=1e-6)
    assert same["difference"] == pytest.approx(-mean, abs=1e-6)
    (missing,) = [record for record in found.records if record["error"]]
    assert "moved has no image 000004" in missing["error"]
    details, summary, html = write_results(found, tmp_path)
    with open(details) as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    assert [row["boundary"] for row in rows if row["error"]] == [""]  # never 0
    assert float(rows[0]["mask_share"]) == pytest.approx(
        (np.asarray(Image.open(read_layout(folder)[0].mask)) > 127).mean(), abs=1e-6
    )
    assert len(summary.read_text().splitlines()) == 1 + len(found.summary())
    text = html.read_text()
    assert text.count("<figure>") == 5 * 4
    assert text.count("data:image/png") == 5 * 4 - 1
    assert "http" not in text.replace("http-equiv", "")


def test_prompts_on_the_page_are_text(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    (tmp_path / "set/prompts/000000.txt").write_text("<script>alert(1)</script>")
    assert "<script>" not in page(evaluate_results(tmp_path / "set", REWARDS, progress=False))


def test_results_of_other_sizes(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "set")
    large, wide = (tmp_path / "set/results/same" / f"00000{at}.png" for at in (0, 1))
    Image.open(large).resize((128, 128)).save(large)
    Image.open(wide).resize((128, 64)).save(wide)
    records = evaluate_results(tmp_path / "set", REWARDS, progress=False).records
    of_same = {record["name"]: record for record in records if record["model"] == "same"}
    assert of_same["000000"]["error"] == ""
    assert "same proportions" in of_same["000001"]["error"]


def test_equal_pixels_count_as_the_highest_psnr(folder):
    found = evaluate_results(folder, REWARDS, progress=False)
    assert np.isinf(found.values("same", "psnr")).all()
    lines = {line["model"]: line for line in found.summary() if line["measure"] == "psnr"}
    most = 10 * np.log10((2 * 255) ** 2)  # an error of half a step of 8 bits
    assert lines["same"]["count"] == 5
    assert lines["same"]["mean"] == pytest.approx(most)
    moved = found.values("moved", "psnr")[:4]
    assert lines["moved"]["mean"] == pytest.approx(moved.mean())
    assert lines["same"]["difference"] == pytest.approx((most - moved).mean())


class Paths(PairScorer):
    """Scores a file by its size, and notes what it is given."""

    name = "paths"

    def __init__(self):
        self.seen = []

    def score_pairs(self, prompts, images, *, batch_size=None):
        self.seen += images
        return [float(image.stat().st_size) for image in images]


class Silent(PairScorer):
    name = "silent"

    def score_pairs(self, prompts, images, *, batch_size=None):
        raise RemoteError("the server is down")


def test_one_scorer_without_an_answer_leaves_the_others_their_scores(folder):
    """And a scorer that knows no masks is given the files."""
    paths = Paths()
    scorers = {"silent": Silent(), "paths": paths, "boundary": Boundary()}
    found = evaluate_results(folder, scorers, progress=False)
    files = [folder / f"results/same/{row.name}.png" for row in read_layout(folder)]
    assert paths.seen[4:] == files
    assert found.values("same", "paths").tolist() == [path.stat().st_size for path in files]
    assert np.isfinite(found.values("same", "boundary")).all()
    assert np.isnan(found.values("same", "silent")).all()
    errors = [record["error"] for record in found.records if record["model"] == "same"]
    assert errors == ["silent: RemoteError: the server is down"] * 5


def test_folders_without_results(tmp_path):
    write_data(tmp_path / "set", "shapes", count=1, progress=False)
    with pytest.raises(InputError, match="results"):
        evaluate_results(tmp_path / "set", REWARDS, progress=False)


def test_unknown_measures_are_refused(folder):
    row = read_layout(folder)[0]
    painted = open_painted("a", row.image, row.image, row.mask, "row")
    with pytest.raises(InputError, match="lpips"):
        outside(painted, ["ssim"])


# score-table.


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("boundary", True),
        ("inside(CLIP)", True),
        ("http://h:1/calculate_reward#hps_score", True),
        ("CLIP", False),
        ("http://h:1#CLIP", False),
        ("boundary_models/a", False),
    ],
)
def test_names_of_rewards_of_regions(name, reads):
    assert reads_masks(name) == reads


@pytest.fixture
def table(folder) -> Path:
    records = [
        {
            "prompt": row.prompt,
            "image": f"results/moved/{row.name}.png",
            "mask_path": f"masks/{row.name}.png",
            "original": f"originals/{row.name}.png",
        }
        for row in read_layout(folder)
    ]
    records.append({"prompt": "a cat", "image": "results/moved/000000.png"})
    path = folder / "painted.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_command_scores_rows_with_masks(folder, table, tmp_path):
    out = tmp_path / "scores.jsonl"
    names = ("boundary", "preservation", "inside(ImageReward-tiny, 32)")
    models = [part for name in names for part in ("-m", name)]
    run = subprocess.run(
        [sys.executable, "-m", "imagereward", "score-table", str(table), "--out", str(out), *models],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == 3, run.stderr  # two rows have errors
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    expected = evaluate_results(folder, REWARDS, progress=False)
    for at in range(4):
        for name in REWARDS:
            assert rows[at][f"score:{name}"] == pytest.approx(expected.values("moved", name)[at], abs=1e-6)
        assert rows[at]["score:inside(ImageReward-tiny, 32)"] is not None
        assert rows[at]["error"] is None
    assert "000004" in rows[4]["error"]
    assert "has no mask" in rows[5]["error"]
    assert rows[5]["score:boundary"] is None


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_of_other_formats_say_the_same(table, tmp_path, suffix):
    out = tmp_path / f"scores.{suffix}"
    summary = score_masked_table(table, out, ["boundary"], progress=False)
    assert (summary.rows, summary.failed) == (6, 2)
    plain = tmp_path / "scores.jsonl"
    score_masked_table(table, plain, ["boundary"], progress=False)
    expected = [json.loads(line)["score:boundary"] for line in plain.read_text().splitlines()]
    if suffix == "csv":
        with open(out) as file:
            found = [row["score:boundary"] for row in csv.DictReader(file)]
        assert [float(value) if value else None for value in found] == expected
    else:
        from pyarrow import parquet

        assert parquet.read_table(out)["score:boundary"].to_pylist() == expected
    with pytest.raises(OutputError, match="overwrite"):
        score_masked_table(table, out, ["boundary"], progress=False)


def invoke(*arguments: object):
    return CliRunner().invoke(app, ["score-table", *map(str, arguments)])


def test_options_of_score_table_apply_to_masks_or_are_refused(folder, table, tmp_path):
    out = tmp_path / "scores.jsonl"
    refused = {
        "--markup": "keep",
        "--batch-size": 4,
        "--workers": 2,
        "--cache": tmp_path,
        "--cache-budget": 1,
        "--engine": "ray",
        "--actors": 2,
    }
    given = [part for option in refused.items() for part in option]
    devices = ["--device", "cpu", "--device", "cpu"]
    found = invoke(table, "--out", out, "-m", "boundary", *given, *devices, "--exif-rotation").exception
    assert isinstance(found, InputError)
    assert all(option in str(found) for option in (*refused, "a second --device", "--exif-rotation"))
    assert not out.exists()

    elsewhere = tmp_path / "tables"
    elsewhere.mkdir()
    records = [json.loads(line) for line in table.read_text().splitlines()][:2]
    lines = [
        {"said": "x", "shown": each["image"], "mask": each["mask_path"], "who": at, "note": ["a"]}
        for at, each in enumerate(records)
    ]
    (elsewhere / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    common = ["-m", "boundary", "-m", "inside(ImageReward-tiny, 32)", "--images", folder, "--keep", "note"]
    common += ["--image-column", "shown", "--id-column", "who", "--offline", "--dtype", "bfloat16"]
    kept = invoke(elsewhere / "rows.jsonl", "--out", out, *common, "--prompt-column", "said")
    assert kept.exit_code == 0, kept.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["id"], row["prompt"], row["note"]) for row in rows] == [
        ("0", "x", '["a"]'),
        ("1", "x", '["a"]'),
    ]
    assert (tmp_path / rows[0]["image"]).samefile(folder / records[0]["image"])
    one = invoke(
        elsewhere / "rows.jsonl", "--out", tmp_path / "one.jsonl", *common, "--prompt", "a red circle"
    )
    assert one.exit_code == 0, one.output
    other = [json.loads(line) for line in (tmp_path / "one.jsonl").read_text().splitlines()]
    assert {row["prompt"] for row in other} == {"a red circle"}
    assert other[0]["score:boundary"] == rows[0]["score:boundary"]
    with pytest.raises(InputError, match="no column 'nothing'"):
        score_masked_table(table, tmp_path / "no.csv", ["boundary"], keep=["nothing"], progress=False)


def test_a_table_with_masks_is_never_written_over_itself(table, tmp_path):
    before = table.read_bytes()
    (tmp_path / "link.jsonl").symlink_to(table)
    for out in (table, tmp_path / "link.jsonl"):
        with pytest.raises(InputError, match="is part of the input"):
            score_masked_table(table, out, ["boundary"], overwrite=True, progress=False)
    assert table.read_bytes() == before


def test_text_that_utf_8_cannot_encode_is_written_all_the_same(folder, table, tmp_path):
    row = json.loads(table.read_text().splitlines()[0])
    lines = [row, {**row, "image": "\udcff.png", "id": "\udcfe"}]
    rows = folder / "surrogates.jsonl"
    rows.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = score_masked_table(rows, tmp_path / "scores.csv", ["boundary"], progress=False)
    assert (found.rows, found.failed) == (2, 1)
    assert "\\udcff.png" in (tmp_path / "scores.csv").read_text(encoding="utf-8")


def test_a_server_that_dies_stops_the_table_which_goes_on_from_there(folder, tmp_path):
    row = read_layout(folder)[0]
    rows = folder / "many.jsonl"
    record = {"image": "results/moved/000000.png", "mask": f"masks/{row.name}.png"}
    rows.write_text("".join(json.dumps({**record, "prompt": f"cat {at}"}) + "\n" for at in range(12)))
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.seen = []
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        name = f"http://127.0.0.1:{server.server_port}/calculate_reward#hps_score"
        out = tmp_path / "scores.jsonl"

        def score():
            return score_masked_table(rows, out, ["boundary", name], part_rows=2, progress=False)

        answers = iter([(200, {"hps_score": 0.25})] * 5)
        server.answer = lambda asked: next(answers, (500, {"detail": "out of memory"}))
        with pytest.raises(
            RemoteError, match=r"rows 5, 6, 7, 8, 9, .*out of memory.*the same command goes on"
        ):
            score()
        assert len(server.seen) == 10
        parts = sorted(path.name for path in (tmp_path / "scores.jsonl.parts").glob("part-*"))
        assert parts == ["part-00000000.parquet", "part-00000001.parquet"]  # row 5 is not in a finished part
        assert not out.exists()
        server.answer = lambda asked: (200, {"hps_score": 0.75})
        assert score().failed == 0
        found = [json.loads(line) for line in out.read_text().splitlines()]
        assert [row[f"score:{name}"] for row in found] == [0.25] * 5 + [0.75] * 7
        assert {row["score:boundary"] for row in found} == {found[0]["score:boundary"]}
        out.unlink()
        one_failure = iter([(500, {})])
        server.answer = lambda asked: next(one_failure, (200, {"hps_score": 0.5}))
        rows.write_text(rows.read_text().replace("cat", "dog"))
        summary = score()
        assert (summary.failed, summary.partly) == (0, 1)
        (first, *others) = [json.loads(line) for line in out.read_text().splitlines()]
        assert first[f"score:{name}"] is None
        assert first["score:boundary"] == found[0]["score:boundary"]
        assert "RemoteError" in first["error"]
        assert not any(row["error"] for row in others)
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize("suffix", ["tar", "zip"])
def test_archives_hold_no_rows_with_masks(table, tmp_path, suffix):
    """Records of an archive may name no files outside of it; here none are opened at all."""
    archive = shutil.make_archive(str(tmp_path / "rows"), suffix, table.parent, table.name)
    with pytest.raises(InputError, match=rf"rows\.{suffix}"):
        score_masked_table(archive, tmp_path / "scores.csv", ["boundary"], progress=False)
    assert not (tmp_path / "scores.csv").exists()


def test_comparisons_of_models_that_paint_show_the_masks(folder):
    rows = read_rows(folder, ("image", "mask"))[:2]
    found = compare(
        pipelines.sd_inpaint(),
        pipelines.sd_inpaint(seed=1),
        rows,
        {"boundary": 1.0, "preservation": 1.0},
        seeds=1,
        steps=3,
        guidance=1.0,
        resolution=16,
        device="cpu",
    )
    assert [line["reward"] for line in found.rows()] == ["boundary", "preservation", "sum"]
    text = comparison_page(found)
    assert text.count('alt="mask"') == 2
    assert text.count('alt="image"') == 2
