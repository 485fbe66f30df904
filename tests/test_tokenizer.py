"""WordPiece against transformers' own BERT tokenizers on the vocabulary that ships with the package."""

import hashlib
import importlib
import random

import pytest
import torch

from imagereward.models.tokenizer import VOCABULARY, WordPieceTokenizer

DEC, ENC = 30522, 30523
TEXTS = {
    "empty": "",
    "spaces": "     ",
    "white space": " \t\n\r\x0b\x0c a \n\n b\t",
    "plain": "a painting of an ocean with clouds and birds, day time, low depth field effect",
    "upper case": "A RED BICYCLE Leaning Against A BLUE Wall",
    "accents": "Überraschung! naïve café, São Paulo, Łódź, Tiếng Việt, Ångström, ñandú",
    "combining accents": "e\u0301 a\u0300\u0301\u0302 \u0300 n\u0303andu",
    "special casing": "İstanbul ǅ straße ẞ ς Σ ŉ",
    "compatibility forms": "ﬁne ﬀ ½ x² ① Ⅷ ｆｕｌｌ ｗｉｄｔｈ ™ ª",
    "Chinese": "日本の桜,一隻貓在沙發上睡覺。〇",
    "rare Chinese": "𠀀𪜀 豈 㐀",
    "Japanese": "ひらがな カタカナ が ガ",
    "Korean": "한국어 조선 ㄱㄴ",
    "other scripts": "ไทย हिन्दी عربى עברית ქართული русский йод Ελληνικά",
    "mixed scripts": "Überraschung! 日本の桜 & naïve café — 100% photo-realistic, 8k??",
    "emoji": "a cat 😀 on the 🏖️",
    "joined emoji": "👩‍👩‍👧 👍🏽 🇫🇷 ❤️",
    "punctuation": "a,b;c:d--e…f (g) [h] {i} <j> \"k\" 'l' «m» “n” ‘o’ ¿p? ¡q!",
    "ASCII symbols": "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "symbols": "$1,000.00 €5 £6 50% 3×4 = 12 ± 1 °C § ¶ →",
    "apostrophes": "don't o'neil’s rock 'n' roll",
    "numbers": "1234567890 1920x1080 f/1.4 8k 0.5 1e-6",
    "identifiers": "snake_case CamelCase C++ foo.bar(baz) https://example.com/a?b=c#d",
    "control characters": "\x00a\x01b\x1b[0m\x7f c\x85d",
    "format characters": "a\u200bb\u200dc\u2060d\ufeffe co\u00adop \u202eabc\u202c",
    "unusual spaces": "a\u00a0b\u2003c\u3000d\u2028e\u2029f",
    "replacement character": "\ufffd a\ufffdb",
    "private use": "\ue000 a\uf8ffb",
    "beyond the first plane": "𝒶 𝔸 𐍈 🀄 \U000e0061",
    "special tokens": "[CLS] [SEP] [MASK] [PAD] [UNK]",
    "separator inside": "a cat [SEP] a dog",
    "separator inside a word": "a[SEP]b",
    "many separators": "[SEP][SEP] [SEP]",
    "special tokens, lower case": "[sep] [cls] [mask]",
    "special tokens with letters": "[MASK]ed un[UNK]nown [ SEP ]",
    "BLIP's tokens": "[DEC] a picture [ENC]",
    "word pieces": "##ing # # ##",
    "unknown characters": "☃ ꙮ 𒀀",
    "99 letters": "x" * 99,
    "100 letters": "x" * 100,
    "101 letters": "x" * 101,
    "very long word": "x" * 5000,
    "33 words": "word " * 33,
    "34 words": "word " * 34,
    "510 words": "word " * 510,
    "511 words": "word " * 511,
    "very long": "an astronaut riding a horse, " * 500,
    "pieces at the limit": "photorealistic " * 40,
}
LENGTHS = (35, 512)


def bert(module_and_class: list[tuple[str, str]], blip: bool):
    """The first of those classes that exists and takes the vocabulary, with BLIP's two tokens or without."""
    pytest.importorskip("transformers")
    for module, name in module_and_class:
        try:
            kind = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
        for argument in ("vocab", "vocab_file"):  # since transformers 5, and before
            try:
                tokenizer = kind(**{argument: str(VOCABULARY)})
            except (TypeError, ValueError, OSError):
                continue
            if len(tokenizer) == DEC:
                if blip:
                    tokenizer.add_special_tokens({"bos_token": "[DEC]"})
                    tokenizer.add_special_tokens({"additional_special_tokens": ["[ENC]"]})
                return tokenizer
    pytest.skip("this transformers has no such tokenizer")


FAST = [("transformers", "BertTokenizerFast"), ("transformers", "BertTokenizer")]
# In Python alone, and what the original used. Since transformers 5 it has another name.
SLOW = [
    ("transformers.models.bert.tokenization_bert_legacy", "BertTokenizerLegacy"),
    ("transformers", "BertTokenizer"),
]


@pytest.fixture(scope="module")
def ours():
    return WordPieceTokenizer()


@pytest.fixture(scope="module", params=[FAST, SLOW], ids=["fast", "slow"])
def theirs(request):
    return bert(request.param, blip=True)


def test_the_vocabulary_is_the_released_one():
    data = VOCABULARY.read_bytes()
    assert len(data.splitlines()) == 30522
    assert (
        hashlib.sha256(data).hexdigest() == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"
    )


def test_the_special_tokens_have_their_released_numbers(ours):
    lines = VOCABULARY.read_text(encoding="utf-8").split("\n")
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert [lines.index(name) for name in names] == [0, 100, 101, 102, 103]
    assert ours.encode(["[DEC] [ENC]"], 35)[0].tolist() == [[101, DEC, ENC, 102]]
    assert (ours.pad_id, ours.sep_id) == (0, 102)


def test_a_known_prompt_has_its_known_ids(ours):
    assert ours.encode(["a red bicycle"], 35)[0].tolist() == [[101, 1037, 2417, 10165, 102]]


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_ids_equal_those_of_transformers(ours, theirs, text):
    ids, mask = ours.encode([text], 10**6)
    assert ids[0].tolist() == theirs(text).input_ids
    assert mask.all()


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_truncation_equals_that_of_transformers(ours, theirs, text, length):
    ids, _ = ours.encode([text], length)
    assert ids[0].tolist() == theirs(text, truncation=True, max_length=length).input_ids


@pytest.mark.parametrize("length", LENGTHS)
def test_a_batch_equals_that_of_transformers(ours, theirs, length):
    texts = list(TEXTS.values())
    ids, mask = ours.encode(texts, length)
    batch = theirs(texts, truncation=True, max_length=length, padding="longest", return_tensors="pt")
    assert torch.equal(ids, batch.input_ids)
    assert torch.equal(mask, batch.attention_mask)
    assert ids.dtype == torch.int64
    assert ids.shape == (len(texts), length)


def test_counts_equal_those_of_transformers(ours, theirs):
    texts = list(TEXTS.values())
    assert ours.count(texts) == [len(theirs(text).input_ids) for text in texts]


def test_every_character_of_the_first_planes_equals_the_fast_tokenizer(ours):
    theirs = bert(FAST, blip=True)
    words = [f"a{chr(code)}b" for code in range(0x20000) if not 0xD800 <= code < 0xE000]
    texts = [" ".join(words[first : first + 256]) for first in range(0, len(words), 256)]
    assert ours._ids(texts) == theirs(texts).input_ids


def test_random_strings_equal_the_slow_tokenizer(ours):
    # Characters younger than the tables inside `tokenizers` are left out: Python knows them, those do not.
    theirs = bert(SLOW, blip=True)
    rng = random.Random(0)
    alphabet = "".join(TEXTS.values()) + "".join(map(chr, [*range(0x250), *range(0x4E00, 0x4E80)]))
    texts = ["".join(rng.choices(alphabet, k=rng.randint(1, 60))) for _ in range(300)]
    assert ours._ids(texts) == [theirs(text).input_ids for text in texts]


def test_a_text_without_blips_tokens_does_not_notice_them(ours):
    plain = bert(FAST, blip=False)
    texts = [text for name, text in TEXTS.items() if name != "BLIP's tokens"]
    assert ours._ids(texts) == plain(texts).input_ids


def test_an_empty_prompt_is_two_tokens(ours):
    ids, mask = ours.encode([""], 35)
    assert ids.tolist() == [[101, 102]]
    assert mask.tolist() == [[1, 1]]


def test_a_long_prompt_keeps_its_beginning_and_ends_with_a_separator(ours):
    text = TEXTS["very long"]
    whole, cut = ours.encode([text], 10**6)[0][0], ours.encode([text], 35)[0][0]
    assert torch.equal(cut[:34], whole[:34])
    assert cut[34] == 102


def test_a_prompt_of_exactly_the_limit_is_not_cut(ours):
    text = TEXTS["33 words"]
    assert ours.count([text]) == [35]
    assert torch.equal(ours.encode([text], 35)[0], ours.encode([text], 512)[0])


def test_a_shorter_prompt_is_padded_to_the_longest_of_its_batch(ours):
    ids, mask = ours.encode(["a red bicycle", ""], 35)
    assert ids.tolist() == [[101, 1037, 2417, 10165, 102], [101, 102, 0, 0, 0]]
    assert mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]


def test_counts_are_those_before_truncation(ours):
    assert ours.count([TEXTS["510 words"], ""]) == [512, 2]


# The face for code that calls the original's `blip.tokenizer`.


@pytest.fixture(scope="module")
def wrapped(ours):
    pytest.importorskip("transformers")
    return ours.for_transformers


CALL = {"padding": "max_length", "truncation": True, "max_length": 35, "return_tensors": "pt"}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
def test_for_transformers_gives_the_same_ids_padded_to_the_limit(ours, wrapped, text):
    ids, mask = ours.encode([text], 35)
    result = wrapped(text, **CALL)
    rest = 35 - ids.shape[1]
    assert torch.equal(result.input_ids, torch.nn.functional.pad(ids, (0, rest)))
    assert torch.equal(result.attention_mask, torch.nn.functional.pad(mask, (0, rest)))


def test_for_transformers_takes_a_list(ours, wrapped):
    texts = list(TEXTS.values())
    ids, mask = ours.encode(texts, 35)
    result = wrapped(texts, **CALL)
    assert torch.equal(result.input_ids, ids)
    assert torch.equal(result.attention_mask, mask)


def test_for_transformers_equals_the_originals_tokenizer(wrapped, theirs):
    texts = list(TEXTS.values())
    ours, original = wrapped(texts, **CALL), theirs(texts, **CALL)
    assert torch.equal(ours.input_ids, original.input_ids)
    assert torch.equal(ours.attention_mask, original.attention_mask)


def test_for_transformers_has_the_special_ids_of_the_original(wrapped):
    assert wrapped.enc_token_id == ENC
    assert wrapped.bos_token_id == DEC
    assert (wrapped.pad_token_id, wrapped.cls_token_id, wrapped.sep_token_id) == (0, 101, 102)
    assert len(wrapped) == 30524


def test_for_transformers_decodes_to_the_prompt(wrapped):
    ids = wrapped("a red bicycle", **CALL).input_ids[0]
    assert wrapped.decode(ids, skip_special_tokens=True) == "a red bicycle"


def test_truncation_in_for_transformers_does_not_reach_the_tokenizer_behind_it():
    pytest.importorskip("transformers")
    tokenizer = WordPieceTokenizer()
    tokenizer.for_transformers(TEXTS["very long"], **CALL)
    assert tokenizer.count([TEXTS["510 words"]]) == [512]
    assert tokenizer.encode([""], 35)[0].shape == (1, 2)


def test_for_transformers_is_made_once(ours, wrapped):
    assert ours.for_transformers is wrapped
