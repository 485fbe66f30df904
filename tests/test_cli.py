"""The command line: output in every format, errors in one line, and help without waiting."""

import csv
import io
import json
import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from conftest import CONFIGS, pictures, small_scorer
from typer.testing import CliRunner

from imagereward.cli import app, main
from imagereward.registry import REGISTRY


def run(*arguments: str):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def saved(tmp_path):
    return str(small_scorer("ImageReward").save_pretrained(tmp_path / "saved"))


def error_of(capsys, *arguments: str) -> str:
    """What the console entry point prints to stderr when it fails."""
    before, sys.argv = sys.argv, ["imagereward", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    assert stop.value.code == 1
    return capsys.readouterr().err


def test_rank_prints_the_images_best_first(saved, image_paths):
    lines = run("rank", "-m", saved, "a red bicycle", *image_paths).splitlines()
    expected = small_scorer("ImageReward").rank("a red bicycle", image_paths)
    assert [line.split()[-1] for line in lines[2:]] == [image_paths[index] for index in expected.order]


def test_rank_as_json_carries_truncation_and_full_precision(saved, image_paths):
    out = json.loads(run("rank", "-m", saved, "--format", "json", "a red bicycle", *image_paths))
    expected = small_scorer("ImageReward").rank("a red bicycle", image_paths)
    assert out["ranking"] == expected.rows()
    assert out["truncated"] is False
    assert out["tokens"] == 5


def test_score_as_csv_keeps_the_given_order(saved, image_paths):
    rows = list(csv.DictReader(io.StringIO(run("score", "-m", saved, "--format", "csv", "a", *image_paths))))
    assert [row["image"] for row in rows] == image_paths
    expected = small_scorer("ImageReward").score("a", image_paths)
    assert [float(row["score"]) for row in rows] == expected


def test_a_quoted_glob_is_expanded_in_sorted_order(saved, image_paths, tmp_path):
    out = json.loads(run("score", "-m", saved, "--format", "json", "a", tmp_path / "*.png"))
    assert [row["image"] for row in out] == sorted(image_paths)


def test_a_file_whose_name_looks_like_a_glob_is_taken_as_it_is(saved, tmp_path):
    path = tmp_path / "odd[1].png"
    pictures(1)[0].save(path)
    assert json.loads(run("score", "-m", saved, "--format", "json", "a", path))[0]["image"] == str(path)


def test_models_lists_the_registry():
    table = run("models")
    rows = json.loads(run("models", "--format", "json"))
    assert [row["name"] for row in rows] == list(REGISTRY)
    assert all(name in table for name in REGISTRY)


def test_bench_reports_images_per_second_by_dtype_and_batch(monkeypatch):
    small = replace(REGISTRY["ImageReward-v1.0"], config=CONFIGS["ImageReward"])
    monkeypatch.setitem(REGISTRY, "ImageReward-v1.0", small)
    rows = json.loads(
        run("bench", "--dtype", "float32", "--batch-size", "1", "--batch-size", "2", "--seconds", "0",
            "--format", "json")
    )  # fmt: skip
    assert [(row["dtype"], row["batch"]) for row in rows] == [("float32", 1), ("float32", 2)]
    assert all(row["images_per_s"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["score", "-m", "{saved}", "a", "/nowhere.png"], "images[0] (/nowhere.png) does not exist"),
        (["score", "-m", "{saved}", "a", "/nowhere/*.png"], "no file matches '/nowhere/*.png'"),
        (["rank", "-m", "Nope", "a", "{image}"], "known: ImageReward-v1.0, CLIP"),
        (["rank", "--checkpoint", "/nowhere.pt", "a", "{image}"], "checkpoint /nowhere.pt does not exist"),
        (["rank", "-m", "{saved}", "--device", "cuda:77", "a", "{image}"], "present: cpu"),
        (["rank", "-m", "{saved}", "--dtype", "int4", "a", "{image}"], "expected one of float32"),
        (["rank", "--offline", "--download-root", "/nowhere", "a", "{image}"], "put the file at"),
    ],
)
def test_an_error_is_one_message_on_stderr_and_exit_code_1(capsys, saved, image_paths, arguments, message):
    filled = [argument.format(saved=saved, image=image_paths[0]) for argument in arguments]
    error = error_of(capsys, *filled)
    assert error.startswith("imagereward: ")
    assert message in error
    assert "Traceback" not in error


def test_verify_offline_says_what_it_could_not_reach(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("imagereward.verify.SAMPLES", "http://127.0.0.1:9/")
    error = error_of(capsys, "verify", "--download-root", tmp_path)
    assert "cannot verify; out of reach" in error
    assert "1.webp" in error
    assert "ImageReward.pt" in error
    assert "Connection refused" not in error  # the tests run offline: nothing may have been tried


def test_verify_prints_published_beside_measured_and_names_a_checkpoint_that_is_not_the_released(
    tmp_path, monkeypatch
):
    small = replace(REGISTRY["ImageReward-v1.0"], config=CONFIGS["ImageReward"])
    monkeypatch.setitem(REGISTRY, "ImageReward-v1.0", small)
    torch.save(small_scorer("ImageReward").state_dict(), tmp_path / "x.pt")
    for number, picture in enumerate(pictures(4), 1):
        picture.save(tmp_path / f"{number}.webp")
    result = CliRunner().invoke(
        app, ["verify", "--checkpoint", str(tmp_path / "x.pt"), "--images", str(tmp_path)]
    )
    assert result.exit_code == 1
    assert "0.5812" in result.stdout
    assert result.stdout.count("NOT the released file") == 4
    assert "DOES NOT agree" in result.stdout


def test_a_wrong_path_is_reported_before_the_model_is_loaded(capsys, monkeypatch, image_paths):
    monkeypatch.setattr("imagereward.cli.scoring.load_scorer", lambda *_: pytest.fail("loaded the model"))
    assert "images[1] (/nowhere.png)" in error_of(capsys, "rank", "a", image_paths[0], "/nowhere.png")


def test_verify_with_another_models_checkpoint_is_one_message(capsys, tmp_path, saved):
    torch.save(small_scorer("CLIP").state_dict(), tmp_path / "clip.pt")
    for number, picture in enumerate(pictures(4), 1):
        picture.save(tmp_path / f"{number}.webp")
    error = error_of(capsys, "verify", "--checkpoint", tmp_path / "clip.pt", "--images", tmp_path)
    assert "does not fit a scorer of kind ImageReward" in error


def test_verify_agrees_where_scores_and_weights_are_the_published_ones(tmp_path, monkeypatch):
    from imagereward import hub, verify

    released = REGISTRY["ImageReward-v1.0"]
    torch.save(small_scorer("ImageReward").state_dict(), tmp_path / "x.pt")
    for number, picture in enumerate(pictures(4), 1):
        picture.save(tmp_path / f"{number}.webp")
    paths = [tmp_path / f"{number}.webp" for number in range(1, 5)]
    published = small_scorer("ImageReward").score(verify.PROMPT, paths)
    file = replace(released.files[0], sha256=hub.sha256_of(tmp_path / "x.pt"))
    small = replace(released, config=CONFIGS["ImageReward"], files=(file,))
    monkeypatch.setitem(REGISTRY, "ImageReward-v1.0", small)
    monkeypatch.setattr(verify, "PUBLISHED", published)
    assert "agrees with" in run("verify", "--checkpoint", tmp_path / "x.pt", "--images", tmp_path)


def test_resume_latest_is_resume_true_wherever_it_stands(capsys, tmp_path):
    for arguments in (
        ("tiny/refl", f"output={tmp_path}", "--resume", "latest"),
        ("--resume", "latest", "tiny/refl", f"output={tmp_path}", "resume=false"),
    ):
        assert f"{tmp_path} holds no run to resume" in error_of(capsys, "tune", *arguments)
    error = error_of(capsys, "tune", "tiny/refl", f"output={tmp_path}", "--resume", "checkpoint-40")
    assert error == "imagereward: --resume checkpoint-40: expected latest\n"


def test_help_answers_at_once_without_importing_torch():
    command = [sys.executable, "-X", "importtime", "-m", "imagereward", "--help"]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "score" in result.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "numpy", "PIL"}

    times = []
    for _ in range(5):  # the least of five: other work on the machine only ever adds
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "imagereward", "--help"], capture_output=True, check=True)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.3


def test_version_is_printed():
    from imagereward import __version__

    assert run("--version").strip() == __version__


def test_progress_of_long_work_goes_to_stderr(saved, image_paths):
    code = (
        "import imagereward.engine as s, imagereward as RM, functools, sys;"
        "s.tqdm = functools.partial(s.tqdm, mininterval=0);"
        "f = s.tqdm; s.tqdm = lambda **k: f(**{**k, 'delay': 0});"
        f"RM.load({saved!r}).score('a', {image_paths!r}, batch_size=1)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert "image/s" in result.stderr
    assert not result.stdout
