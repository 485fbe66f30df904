"""Judges on disk and on the hub: what is saved with them, what is found again, and what bulk runs compare."""

import json
import shutil

import PIL.Image
import pytest
import torch
from conftest import pictures

import imagereward as RM
from imagereward.bulk import score_table
from imagereward.config import AdapterConfig
from imagereward.errors import CheckpointError, OutputError
from imagereward.models.vlm.asking import hpsv3
from imagereward.models.vlm.asking.settings import HeadConfig
from imagereward.models.vlm.hpsv3 import fetch_hpsv3

LONG = "one two three four five six"


def turned(image):
    """The image with an orientation in its EXIF data that turns it by 90 degrees."""
    exif = PIL.Image.Exif()
    exif[0x0112] = 6
    image = image.copy()
    image.info["exif"] = exif.tobytes()
    return image


@pytest.fixture
def photo(tmp_path):
    image = turned(pictures(1)[0])
    image.save(tmp_path / "photo.jpg", exif=image.info["exif"])
    return tmp_path / "photo.jpg"


@pytest.mark.filterwarnings("ignore::imagereward.errors.PromptTruncatedWarning")
def test_length_and_rotation_are_saved_and_may_be_changed(tiny_vlm, tmp_path, photo):
    judge = RM.load(f"vqa:{tiny_vlm()}", "cpu", max_length=4, apply_exif_rotation=True)
    plain = RM.load(f"vqa:{tiny_vlm()}", "cpu")
    cut = judge.encode_prompts([LONG])[0]
    turned_score = plain.score(cut, PIL.Image.open(photo).transpose(PIL.Image.Transpose.ROTATE_270))
    assert judge.score(LONG, photo) == pytest.approx(turned_score, rel=1e-5)
    assert turned_score != pytest.approx(plain.score(cut, photo), rel=1e-3)
    again = RM.load(judge.save_pretrained(tmp_path / "saved"), "cpu")
    assert (again.config.max_length, again.score(LONG, photo)) == (4, judge.score(LONG, photo))
    other = RM.load(tmp_path / "saved", "cpu", max_length=2048, apply_exif_rotation=False)
    assert other.score(LONG, photo) == plain.score(LONG, photo)


def test_a_judge_without_its_head_is_refused(tiny_vlm, tmp_path):
    head = HeadConfig((8,), 1)
    judge = RM.load(f"vqa:{tiny_vlm()}", "cpu", readout="head", template="preference", head=head)
    saved = judge.save_pretrained(tmp_path / "saved")
    image = pictures(1)[0]
    assert RM.load(saved, "cpu", head=head).score("a", image) == judge.score("a", image)
    (saved / "reward_head.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"reward_head.safetensors is missing.*or head=HeadConfig"):
        RM.load(saved, "cpu")
    assert RM.load(saved, "cpu", head=head).score("a", image) != judge.score("a", image)


def test_published_weights_are_found_in_download_root(tmp_path, monkeypatch):
    (tmp_path / "HPSv3.safetensors").write_bytes(b"weights")
    seen = []

    def opened(transformers, base, weights, *rest):
        seen.append(weights)
        raise CheckpointError("enough")

    source = tmp_path / "source.py"
    source.write_text("INSTRUCTION = '{text_prompt}'\nprompt_with_special_token = '<|Reward|>'\n")
    monkeypatch.setattr(hpsv3, "SHA256", hpsv3.hashlib.sha256(b"{text_prompt}<|Reward|>").hexdigest())
    monkeypatch.setattr("imagereward.models.vlm.opening.open_hpsv3", opened)
    with pytest.raises(CheckpointError, match="enough"):
        RM.load("HPSv3", "cpu", tmp_path, template=source, local_files_only=True)
    assert seen == [tmp_path / "HPSv3.safetensors"]
    with pytest.raises(CheckpointError, match=r"and it is not in .*nowhere"):
        fetch_hpsv3(tmp_path / "nowhere", True)


def test_models_of_judges_are_found_in_download_root(tiny_vlm, tmp_path):
    place = tmp_path / "models--owner--tiny"
    shutil.copytree(tiny_vlm(), place / "snapshots/0123")
    (place / "refs").mkdir()
    (place / "refs/main").write_text("0123")
    judge = RM.load("vqa:owner/tiny", "cpu", tmp_path, local_files_only=True)
    image = pictures(1)[0]
    assert judge.score("a", image) == RM.load(f"vqa:{tiny_vlm()}", "cpu").score("a", image)


# Bulk runs.


@pytest.fixture
def rows(tmp_path):
    pictures(1)[0].save(tmp_path / "0.png")
    (tmp_path / "rows.jsonl").write_text(json.dumps({"image": "0.png", "prompt": "a"}) + "\n")
    return tmp_path / "rows.jsonl"


def begun_with(rows, out, model, monkeypatch, **options):
    """A run that is killed after it has begun."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "imagereward.bulk.local.score_parts", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
        )
        with pytest.raises(KeyboardInterrupt):
            score_table(rows, out, str(model), device="cpu", workers=0, progress=False, **options)


def test_a_run_is_not_continued_with_other_questions_or_another_rotation(
    tiny_vlm, rows, tmp_path, monkeypatch
):
    questions, file = tmp_path / "q.jsonl", tmp_path / "judge.toml"
    questions.write_text(json.dumps({"prompt": "a", "vqa_list": ["Is it?"]}))
    file.write_text(f'model = "{tiny_vlm()}"\nquestions = "{questions}"\n')
    begun_with(rows, tmp_path / "out.jsonl", file, monkeypatch)
    questions.write_text(json.dumps({"prompt": "a", "vqa_list": ["Was it?"]}))
    with pytest.raises(OutputError, match="weights of"):
        score_table(rows, tmp_path / "out.jsonl", str(file), device="cpu", workers=0, progress=False)
    model = f"vqa:{tiny_vlm()}"
    begun_with(rows, tmp_path / "turned.jsonl", model, monkeypatch, apply_exif_rotation=True)
    with pytest.raises(OutputError, match="config of"):
        score_table(rows, tmp_path / "turned.jsonl", model, device="cpu", workers=0, progress=False)


def test_rows_whose_prompt_has_no_usable_questions_become_error_rows(tiny_vlm, tmp_path):
    PIL.Image.new("RGB", (32, 32), "red").save(tmp_path / "red.png")
    long = "a " * 600 + "cat"
    table = {long: ["Is it a cat?"], "b": [["What is it?", "twelve"]], "c": None}
    lines = [json.dumps({"prompt": p, "vqa_list": asked}) for p, asked in table.items() if asked]
    (tmp_path / "q.jsonl").write_text("\n".join(lines))
    rows = [json.dumps({"image": "red.png", "prompt": prompt}) for prompt in table]
    (tmp_path / "rows.jsonl").write_text("\n".join(rows))
    (tmp_path / "judge.toml").write_text(f'model = "{tiny_vlm()}"\nquestions = "{tmp_path / "q.jsonl"}"\n')
    out = tmp_path / "out.jsonl"
    score_table(
        tmp_path / "rows.jsonl", out, str(tmp_path / "judge.toml"), device="cpu", workers=0, progress=False
    )
    good, answer, none = [json.loads(line) for line in out.read_text().splitlines()]
    judge = RM.load(str(tmp_path / "judge.toml"), "cpu")
    assert judge.score(long, tmp_path / "red.png") in good.values()  # whole, although it is long
    assert (good["error"], good["truncated"]) == (None, False)
    assert "the answer 'twelve' is 6 tokens" in answer["error"]
    assert "no questions for the prompt 'c'" in none["error"]


def test_weights_of_adapters_that_were_saved_with_a_judge_count(tiny_vlm, tmp_path):
    judge = RM.load(f"vqa:{tiny_vlm()}", "cpu")
    judge.add_adapter(AdapterConfig("lora", rank=1))
    files = RM.load(judge.save_pretrained(tmp_path / "saved"), "cpu").files
    assert tmp_path / "saved/adapters/default/adapter.safetensors" in files.values()


def test_a_judge_is_described_without_its_weights_and_scored_in_the_runs_precision(
    tiny_vlm, rows, tmp_path, monkeypatch
):
    import transformers

    read = []
    found = transformers.AutoModelForImageTextToText.from_pretrained

    def noting(source, **options):
        read.append(options["dtype"])
        return found(source, **options)

    monkeypatch.setattr(transformers.AutoModelForImageTextToText, "from_pretrained", noting)
    model = f"vqa:{tiny_vlm()}"
    score_table(
        rows, tmp_path / "out.jsonl", model, device="cpu", dtype="bfloat16", workers=0, progress=False
    )
    assert read == [torch.bfloat16]
    (row,) = map(json.loads, (tmp_path / "out.jsonl").read_text().splitlines())
    expected = RM.load(model, "cpu", dtype="bfloat16").score("a", tmp_path / "0.png")
    assert next(value for name, value in row.items() if name.startswith("score:")) == pytest.approx(expected)
