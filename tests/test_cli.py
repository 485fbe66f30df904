"""The command line: output in every format, errors in one line, and help without imports."""

import contextlib
import csv
import errno
import functools
import io
import json
import math
import os
import re
import shlex
import subprocess
import sys
import warnings
from dataclasses import replace

import pytest
import torch
import typer
from conftest import CONFIGS, pictures, small_scorer
from tqdm import tqdm
from typer.testing import CliRunner

from imagereward.checkpoints.registry import REGISTRY
from imagereward.cli import app, main
from imagereward.cli.options import Format
from imagereward.cli.output import print_rows
from imagereward.errors import PromptTruncatedWarning


def run(*arguments: str):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def saved(tmp_path):
    return str(small_scorer("ImageReward").save_pretrained(tmp_path / "saved"))


def error_of(capsys, *arguments: str, code: int = 1) -> str:
    """What the console entry point prints to stderr when it fails."""
    before, sys.argv = sys.argv, ["imagereward", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as stop:
            main()
    finally:
        sys.argv = before
    assert stop.value.code == code
    return capsys.readouterr().err


def commands() -> dict:
    """Every command by its name."""
    return typer.main.get_command(app).commands


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
    monkeypatch.setattr("imagereward.checkpoints.verify.SAMPLES", "http://127.0.0.1:9/")
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


def test_several_models_are_a_column_each_in_the_order_given(models, image_paths):
    arguments = ("score", "-m", models["CLIP"], "--model", models["ImageReward"], "a", *image_paths)
    rows = json.loads(run(*arguments, "--format", "json"))
    assert list(rows[0]) == ["score:CLIP", "score:ImageReward", "image"]
    for kind in ("CLIP", "ImageReward"):
        expected = small_scorer(kind, seed=3).score("a", image_paths)
        assert [row[f"score:{kind}"] for row in rows] == pytest.approx(expected, abs=2e-5)
    header, *lines = run(*arguments).splitlines()
    assert header.split() == list(rows[0])
    assert [line.split()[-1] for line in lines] == image_paths


def test_several_models_that_cannot_be_columns_are_refused(capsys, models, saved, image_paths, tmp_path):
    clip = models["CLIP"]
    assert "names one scorer twice" in error_of(capsys, "score", "-m", clip, "-m", clip, "a", *image_paths)
    checkpoint = ("--checkpoint", tmp_path / "x.pt")
    error = error_of(capsys, "score", "-m", clip, "-m", saved, *checkpoint, "a", *image_paths)
    assert "--checkpoint goes with one --model" in error


@pytest.mark.parametrize(
    "arguments",
    [
        ["rank", "-m", "CLIP", "--model", "BLIP", "a", "x.png"],
        ["score", "--device", "cpu", "--device", "cuda", "a", "x.png"],
        ["score", "--format", "csv", "--format=json", "a", "x.png"],
        ["report", "s.csv", "--by", "A", "--by", "B"],
        ["score-table", "t.csv", "--out", "a.csv", "--out", "b.csv"],
    ],
)
def test_an_option_of_one_value_is_refused_if_given_twice(capsys, arguments):
    assert "given 2 times" in error_of(capsys, *arguments, code=2)


def test_an_image_file_in_place_of_the_prompt_is_refused(capsys, image_paths, tmp_path, monkeypatch):
    monkeypatch.setattr("imagereward.cli.scoring.load_scorer", lambda *_: pytest.fail("loaded the model"))
    upper = tmp_path / "photo of a cat.JPG"
    pictures(1)[0].save(upper)
    for command, prompt in (("rank", image_paths[0]), ("score", upper), ("rank", tmp_path / "*.png")):
        error = error_of(capsys, command, prompt, image_paths[1])
        assert f"`imagereward {command} PROMPT IMAGES`" in error


def test_a_prompt_that_looks_like_a_file_is_scored_with_a_warning(saved, image_paths, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a cat")
    (tmp_path / "cat").mkdir()
    monkeypatch.chdir(tmp_path)
    for prompt in ("gone.png", "prompts.txt"):
        with pytest.warns(UserWarning, match="PROMPT IMAGES"):
            run("score", "-m", saved, prompt, image_paths[0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for prompt in ("cat", "a cat, *.png style", "what? [a] cat", "x" * 300):
            with contextlib.suppress(PromptTruncatedWarning):
                run("score", "-m", saved, prompt, image_paths[0])


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
    from imagereward.checkpoints import hub, verify

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
    assert not imported & {"torch", "numpy", "PIL", "rich", "tqdm"}


def test_models_are_listed_without_importing_torch():
    code = "import sys; from imagereward.cli import main; sys.argv = ['imagereward', 'models']\n"
    heavy = "('torch', 'torchvision', 'transformers')"
    code += f"try: main()\nfinally: print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"
    assert "ImageReward-v1.0" in result.stdout


def test_the_list_of_commands_says_what_each_does_in_full():
    lines = run("--help").splitlines()
    assert len(commands()) >= 12
    for name, command in commands().items():
        (line,) = [line for line in lines if line.split()[:1] == [name]]
        assert line.endswith("."), line
        assert not line.endswith("..."), line
        assert command.help


@pytest.mark.parametrize("name", ["models", "score", "rank", "verify", "bench", "demo", "score-table",
                                  "report", "serve", "shapes", "tune", "compare", "choose", "masks",
                                  "preprocess", "evaluate"])  # fmt: skip
def test_help_has_examples_that_parse_and_the_default_of_every_option(name):
    page = run(name, "--help")
    examples = [line.strip() for line in page.partition("Examples:")[2].splitlines() if line.strip()]
    assert examples
    for example in examples:
        program, command, *arguments = shlex.split(example)
        assert (program, command) == ("imagereward", name)
        commands()[name].make_context(command, arguments)
    for option in commands()[name].params:
        if option.name == "help" or option.required or getattr(option, "is_flag", False):
            continue
        assert option.help
        assert option.default is not None or "[default: " in option.help, option.name


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--source", "shapes", "--share", "0.9"), "--share 0.9 has no effect on shapes"),
        (("--source", "photos.csv", "--split", "test"), "--split test is of shapes alone"),
    ],
)
def test_options_of_masks_that_would_have_no_effect_are_refused(options, reason, capsys, tmp_path):
    assert reason in error_of(capsys, "masks", "--out", str(tmp_path / "out"), *options)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_json_is_json_in_every_encoding_of_stdout(encoding, monkeypatch):
    buffer = io.BytesIO()
    stream = io.TextIOWrapper(buffer, encoding, errors="backslashreplace")
    monkeypatch.setattr("sys.stdout", stream)
    print_rows([{"prompt": "a café \U0001f600", "score": math.nan}], Format.json)
    stream.flush()
    assert json.loads(buffer.getvalue()) == [{"prompt": "a café \U0001f600", "score": None}]


def test_without_a_command_the_help_is_shown(capsys):
    assert "score-table" in error_of(capsys, code=2)


@pytest.mark.parametrize(
    ("typed", "meant"), [("scor", "score"), ("score_table", "score-table"), ("mdoels", "models")]
)
def test_an_unknown_command_suggests_the_nearest(capsys, typed, meant):
    error = error_of(capsys, typed, code=2)
    assert f"'{typed}'" in error
    assert f"'{meant}'" in error


class Failing(io.StringIO):
    """A stdout that takes `room` characters, and no more."""

    def __init__(self, error: OSError, room: int = 0):
        super().__init__()
        self.error, self.room = error, room

    def write(self, text: str) -> int:
        if self.tell() + len(text) > self.room:
            raise self.error
        return super().write(text)


@pytest.mark.parametrize("room", [0, 100])
@pytest.mark.parametrize("arguments", [("models",), ("models", "--format", "json"), ("--help",)])
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "its reader has closed it"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
    ],
)
def test_a_stdout_that_fails_is_one_line(capsys, monkeypatch, error, words, arguments, room):
    monkeypatch.setattr(sys, "stdout", Failing(error, room))
    assert error_of(capsys, *arguments) == f"imagereward: standard output cannot be written: {words}\n"


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="this system has no /dev/full")
def test_a_full_disk_behind_stdout_leaves_no_traceback_at_the_end_of_the_process():
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "imagereward", "models"]
        result = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True)
    assert result.returncode == 1
    assert result.stderr == "imagereward: standard output cannot be written: No space left on device\n"


def test_a_pipe_that_closes_early_leaves_no_traceback():
    command = [sys.executable, "-m", "imagereward", "models", "--format", "json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        process.stdout.close()
        said = process.stderr.read()
    assert process.returncode == 1
    assert said == "imagereward: standard output cannot be written: its reader has closed it\n"


def test_an_encoding_without_the_characters_gets_escapes(saved, tmp_path, monkeypatch, capsys):
    pictures(1)[0].save(tmp_path / "猫.png")
    raw = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, encoding="ascii"))
    arguments = ["imagereward", "rank", "-m", saved, "a 猫", str(tmp_path / "猫.png")]
    monkeypatch.setattr(sys, "argv", arguments)
    with pytest.raises(SystemExit) as stop:
        main()
    sys.stdout.flush()
    assert not stop.value.code
    assert raw.getvalue().count(rb"\u732b") == 2


def test_ctrl_c_ends_with_one_line_and_code_130(capsys, saved, image_paths, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("imagereward.cli.scoring.load_scorer", interrupted)
    monkeypatch.setattr("imagereward.bulk.score_table", interrupted)
    assert error_of(capsys, "rank", "a", *image_paths, code=130) == "imagereward: interrupted\n"
    error = error_of(capsys, "score-table", "t.csv", "--out", "o.csv", "-m", saved, code=130)
    assert "the same command goes on from there" in error
    assert error.endswith("imagereward: interrupted\n")


def test_every_command_keeps_an_existing_output_unless_told_to_overwrite(
    capsys, tmp_path, saved, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("image,prompt\n")
    (tmp_path / "p.txt").write_text("a cat\n")
    outputs = {
        "mine.csv": ("score-table", "t.csv", "-m", saved),
        "page.html": ("report", "t.csv"),
        "demo.html": ("demo",),
        "both.html": ("compare", "base", "tuned", "--prompts", "p.txt"),
        "shapes": ("shapes",),
        "masks": ("masks", "--source", "shapes"),
    }
    files = {"shapes": "train.json", "masks": "rows.jsonl"}
    for folder in files:
        (tmp_path / folder).mkdir()
    for name, arguments in outputs.items():
        out = tmp_path / name / files.get(name, "")
        out.write_text("mine")
        error = error_of(capsys, *arguments, "--out", name)
        assert error == f"imagereward: {name} exists; pass --overwrite (overwrite=True) to replace it\n"
        assert out.read_text() == "mine"
        assert "--overwrite" in run(arguments[0], "--help")
    writers = {name for name, command in commands().items() if any(p.name == "out" for p in command.params)}
    assert writers == {arguments[0] for arguments in outputs.values()}


def test_demo_replaces_its_page_when_told_to(tmp_path):
    page = tmp_path / "demo.html"
    page.write_text("old")
    run("demo", "--out", page, "--overwrite", "--prompts", "1", "--images", "2")
    assert page.read_text().startswith("<!doctype html>")
    assert [path.name for path in tmp_path.iterdir()] == ["demo.html"]


def test_a_file_that_cannot_be_written_keeps_what_was_there(tmp_path):
    from imagereward.errors import OutputError
    from imagereward.writing import replacing

    page = tmp_path / "page.html"
    page.write_text("old")

    def fail(error: Exception) -> None:
        with replacing(page) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(OutputError, match=r"page.html cannot be written: .*No space left"):
        fail(OSError(errno.ENOSPC, "No space left"))
    with pytest.raises(ZeroDivisionError):
        fail(ZeroDivisionError())
    assert page.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["page.html"]


@pytest.mark.parametrize(
    ("module", "arguments", "extra"),
    [
        ("pyarrow", ("report", "s.parquet"), "report"),
        ("imagereward.tuning.recipe", ("tune", "tiny/quick"), "train"),
        ("imagereward.tuning.recipe", ("tune", "--list"), "train"),
        ("imagereward.tuning.explain", ("tune", "tiny/quick", "--explain"), "train"),
        ("imagereward.tuning.evaluation.compare", ("compare", "a", "b", "--prompts", "p.txt"), "train"),
        ("fastapi", ("serve",), "serve"),
    ],
)
def test_a_missing_library_is_said_by_the_extra_of_the_command(capsys, monkeypatch, module, arguments, extra):
    for name in [name for name in sys.modules if name.startswith(("imagereward.serve", module))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    error = error_of(capsys, *arguments)
    assert f"needs the extra '{extra}'" in error
    assert f"python -m pip install '.[{extra}]'" in error


def test_version_is_printed():
    from imagereward import __version__

    assert run("--version").strip() == __version__


@pytest.mark.parametrize("command", ["score", "rank"])
def test_progress_of_long_work_goes_to_stderr(saved, image_paths, monkeypatch, capsys, command):
    at_once = functools.partial(tqdm, delay=0, mininterval=0)  # as if the work had taken long already
    monkeypatch.setattr(
        "imagereward.scoring.pair_scoring.tqdm", lambda **options: at_once(**{**options, "delay": 0})
    )
    arguments = [command, "-m", saved, "--batch-size", "1", "--format", "csv", "a", *image_paths]
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert re.search(r"[1-4]/5 .*image/s", result.stderr)
    assert len(result.stdout.splitlines()) == 1 + len(image_paths)


def test_an_apple_gpu_is_among_the_devices_that_are_present(monkeypatch, capsys, saved, image_paths):
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    message = error_of(capsys, "score", "-m", saved, "--device", "cuda:77", "a", image_paths[0])
    assert "present: cpu, mps" in message


def test_replicas_are_refused_without_ray(capsys):
    assert "--replicas 8 needs --engine ray" in error_of(capsys, "serve", "--replicas", "8")
