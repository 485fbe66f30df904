"""How CLIP kinds read a prompt: PickScore as transformers' CLIPTokenizer, CLIP and HPS as open_clip."""

from dataclasses import replace

import open_clip
import pytest
import torch
from conftest import CONFIGS, pictures, small_scorer
from test_models import transformers_clip
from test_tokenizer import TEXTS
from transformers import CLIPTokenizer

import imagereward as RM
from imagereward.checkpoints.assembling import assemble
from imagereward.checkpoints.registry import REGISTRY
from imagereward.config import ScorerConfig
from imagereward.errors import InputError
from imagereward.models.clip import from_transformers

PROMPTS = {
    **TEXTS,
    "HTML": "cats &amp; dogs",
    "HTML twice": "AT&amp;amp;T &lt;b&gt;bold&lt;/b&gt; &#39;quoted&#39; &nbsp;end",
    "mojibake": "schÃ¶ne cafÃ© â€œlightâ€\x9d",
    "two spaces": "  a  red\t\tbicycle \n on a hill ",
    "family": "a family 👩‍👩‍👧 and a flag 🇫🇷",
    "end token": "a cat <|endoftext|> a dog",
    "start token": "<|startoftext|>a cat",
    "end token, upper case": "a cat <|ENDOFTEXT|> a dog",
    "open_clip's own": "a <start_of_text> b <end_of_text>",
    "contractions": "don't I'LL they've l’été",
    "80 words": "a " * 80,
}
DIFFERENT = ("HTML", "HTML twice", "mojibake")


@pytest.fixture(scope="module")
def theirs():
    """transformers' tokenizer, on the vocabulary that open_clip brings along."""
    base = open_clip.SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    vocabulary = {names.get(token, token): number for token, number in base.encoder.items()}
    return CLIPTokenizer(vocab=vocabulary, merges=[tuple(pair) for pair in base.bpe_ranks])


@pytest.fixture(scope="module")
def scorer():
    return small_scorer("PickScore")


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_pickscores_tokens_are_those_of_transformers(scorer, theirs, prompt):
    expected = theirs(prompt, truncation=True, max_length=77).input_ids
    ids = scorer.bpe([prompt])[0].tolist()
    assert ids[: len(expected)] == expected
    assert not any(ids[len(expected) :])
    assert scorer.count_tokens([prompt]) == [len(theirs(prompt).input_ids)]


@pytest.fixture(scope="module")
def repaired():
    """open_clip's tokenizer, which repairs a prompt before it reads it."""
    return open_clip.SimpleTokenizer()


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("kind", ["CLIP", "HPS", "Aesthetic"])
def test_clips_and_hpss_tokens_are_those_of_open_clip(scorers, repaired, kind, prompt):
    assert torch.equal(scorers[kind].bpe([prompt]), repaired([prompt]))


def test_words_that_were_read_are_not_kept(scorers):
    tokenizer = scorers["CLIP"].bpe
    kept = len(tokenizer.cache)
    tokenizer(["".join(chr(97 + (i * i) % 26) for i in range(2000)), "bicycles", "a"])
    assert len(tokenizer.cache) == kept


def test_the_two_differ_where_one_repairs_what_it_is_given(scorer, repaired):
    for name in DIFFERENT:
        assert not torch.equal(scorer.bpe([PROMPTS[name]]), repaired([PROMPTS[name]])), name
    assert torch.equal(scorer.bpe([PROMPTS["two spaces"]]), repaired([PROMPTS["two spaces"]]))


def test_only_pickscore_reads_as_transformers_does():
    read = {name: each.config.tokenization for name, each in REGISTRY.items() if each.config.kind == "CLIP"}
    assert read == {
        **dict.fromkeys(("CLIP", "HPSv2.0", "HPSv2.1"), "open_clip"),
        "PickScore-v1": "transformers",
    }


@pytest.mark.filterwarnings("ignore::imagereward.errors.PromptTruncatedWarning")
@pytest.mark.parametrize("prompt", [PROMPTS[name] for name in (*DIFFERENT, "end token", "80 words")])
def test_pickscores_score_is_that_of_its_own_model_and_tokens(theirs, prompt):
    model = transformers_clip(False)
    config = replace(
        CONFIGS["PickScore"], architecture={**CONFIGS["PickScore"].architecture, "quick_gelu": False}
    )
    state = {f"clip_model.{name}": value for name, value in from_transformers(model.state_dict()).items()}
    ours = assemble(config, state, torch.device("cpu"), torch.float32)
    (image,) = pictures(1)
    ids = theirs(prompt, truncation=True, max_length=77, return_tensors="pt").input_ids
    with torch.inference_mode():
        expected = model(input_ids=ids, pixel_values=ours.preprocess(image)[None]).logits_per_image
    assert ours.score(prompt, image) == pytest.approx(expected.item(), abs=1e-3)


def test_how_prompts_are_read_is_saved_with_the_scorer(scorer, tmp_path):
    again = RM.load(scorer.save_pretrained(tmp_path / "saved"), "cpu")
    assert again.config.tokenization == "transformers"
    assert torch.equal(again.bpe([PROMPTS["HTML"]]), scorer.bpe([PROMPTS["HTML"]]))


def test_an_unknown_way_to_read_is_refused():
    with pytest.raises(InputError, match="tokenization='bpe': expected open_clip or transformers"):
        ScorerConfig("CLIP", tokenization="bpe")
