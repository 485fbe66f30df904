"""Embeddings on disk: the same numbers as fresh ones, and never another model's."""

import json

import pipelines
import pytest
import torch
from forked import run_forked
from test_refl import brightness, settings

from imagereward.errors import CheckpointError, InputError
from imagereward.tuning import tune
from imagereward.tuning.families.latent_cache import CachedPictures, cache_pictures
from imagereward.tuning.families.registry import open_denoiser
from imagereward.tuning.families.text_cache import FACTS_FILE, cache_text

PROMPTS = list(pipelines.PROMPTS)


def opened(family="sd3", **changes):
    return open_denoiser(pipelines.FAMILIES[family](**changes), pipelines.SIDE)


@pytest.mark.parametrize("family", pipelines.FAMILIES)
def test_kept_embeddings_are_those_that_were_computed(family, tmp_path):
    fresh, kept, rows = opened(family), opened(family), pipelines.rows(family)
    cache_text(kept, PROMPTS, tmp_path)
    for name, value in fresh.encode(rows).tensors.items():
        torch.testing.assert_close(kept.encode(rows).tensors[name], value, atol=1e-5, rtol=1e-5)


def test_a_prompt_is_encoded_once_in_all_runs(tmp_path):
    cache_text(opened(), PROMPTS[:2], tmp_path)
    denoiser, asked = opened(), []
    encode = denoiser.text
    denoiser.text = lambda prompts: asked.extend(prompts) or encode(prompts)
    cache_text(denoiser, PROMPTS, tmp_path)
    denoiser.encode([*PROMPTS, PROMPTS[0]])
    assert asked == PROMPTS[2:]
    assert len(list(tmp_path.glob("*.safetensors"))) == 4  # and the empty prompt


def other_length(pipeline):
    pipeline.tokenizer.model_max_length -= 2


def half(pipeline):
    pipeline.text_encoder_2.bfloat16()


def without_t5(pipeline):
    pipeline.text_encoder_3 = pipeline.tokenizer_3 = None


def other_word(pipeline):
    pipeline.tokenizer.add_tokens(["bicycle"])


@pytest.fixture
def own_tokenizers(monkeypatch):
    """Tokenizers of tiny pipelines are one object; here each has its own."""
    monkeypatch.setattr(pipelines, "tokenizer", pipelines.tokenizer.__wrapped__)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (other_length, "tokenizer differ"),
        (other_word, "tokenizer differ"),
        (half, "text_encoder_2, text_encoder_2 precision differ"),
        (without_t5, "text_encoder_3, text_encoder_3 precision, tokenizer_3 differ"),
    ],
)
def test_embeddings_of_another_model_are_refused(change, named, tmp_path, own_tokenizers):
    cache_text(opened(), PROMPTS, tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    pipeline = pipelines.sd3()
    change(pipeline)
    with pytest.raises(InputError, match=f"holds embeddings of another model: {named}; delete it, or name"):
        cache_text(open_denoiser(pipeline, pipelines.SIDE), PROMPTS, tmp_path)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_embeddings_of_other_weights_are_refused(tmp_path):
    cache_text(opened(), PROMPTS, tmp_path)
    with pytest.raises(InputError, match="text_encoder, text_encoder_2, text_encoder_3 differ"):
        cache_text(opened(seed=1), PROMPTS, tmp_path)


def test_embeddings_by_another_denoiser_are_refused(tmp_path):
    denoiser = opened()
    cache_text(denoiser, PROMPTS, tmp_path)
    other = opened()
    other.__class__ = type("Lowercased", (type(other),), {})
    with pytest.raises(InputError, match="holds embeddings of another model: family differ"):
        cache_text(other, PROMPTS, tmp_path)


def test_a_damaged_file_is_named(tmp_path):
    denoiser = opened()
    cache_text(denoiser, PROMPTS[:1], tmp_path)
    for path in tmp_path.glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(CheckpointError, match="the embedding of 'a red circle', cannot be read"):
        denoiser.encode(PROMPTS[:1])
    (tmp_path / FACTS_FILE).write_text("{")
    with pytest.raises(InputError, match=r"embeddings\.json cannot be read"):
        cache_text(opened(), PROMPTS, tmp_path)


@pytest.mark.parametrize("family", ["sd", "flux_kontext"])
def test_a_run_with_kept_embeddings_is_the_run_without(family, tmp_path):
    histories = []
    for name, embeddings in (
        ("without", ""),
        ("with", str(tmp_path / "kept")),
        ("again", str(tmp_path / "kept")),
    ):
        output = tmp_path / name
        tune(
            pipelines.FAMILIES[family](),
            pipelines.rows(family),
            reward=brightness,
            output=output,
            **settings(text_cache=embeddings, guidance=2.0),
        )
        histories.append(json.loads((output / "history.json").read_text()))
    for entries in zip(*histories, strict=True):
        for key, value in entries[0].items():
            assert all(entry[key] == pytest.approx(value, rel=1e-3, abs=1e-5) for entry in entries), key


def cached_by_each(directory):
    """Fill both caches in a directory that all processes share, and in one that each has alone."""
    torch.distributed.init_process_group("gloo")
    rank = torch.distributed.get_rank()
    fill, found = CachedPictures.fill, {}
    for name, folder in (("shared", directory / "shared"), ("own", directory / f"own-{rank}")):
        denoiser, rows, asked, shown = opened("sd_inpaint"), pipelines.rows("sd_inpaint"), [], []
        encode = denoiser.text
        denoiser.text = lambda prompts, encode=encode, asked=asked: asked.extend(prompts) or encode(prompts)
        CachedPictures.fill = lambda self, row, shown=shown: shown.append(row.prompt) or fill(self, row)
        cache_text(denoiser, PROMPTS, folder / "text")
        cache_pictures(denoiser, rows, folder / "pictures")
        found[name] = (asked, shown)
    (directory / f"asked-{rank}.json").write_text(json.dumps(found))


def test_processes_share_the_work_of_a_cache_unless_its_directory_is_their_own(tmp_path):
    ended = run_forked(cached_by_each, tmp_path, log=tmp_path / "log", ranks=2)
    assert ended.codes == [0, 0], ended.output
    first, second = (json.loads((tmp_path / f"asked-{rank}.json").read_text()) for rank in range(2))
    pictured = [row.prompt for row in pipelines.rows("sd_inpaint")]
    for kind, whole in enumerate(([*PROMPTS, ""], pictured)):
        assert first["shared"][kind] == whole[::2]
        assert second["shared"][kind] == whole[1::2]
        assert sorted(first["own"][kind]) == sorted(second["own"][kind]) == sorted(whole)
