"""Adapters on vision-language models: where they are by default, and every contract with one on."""

import copy

import numpy as np
import pytest
import torch
from conftest import pictures
from personal_choices import rankings
from plain_vlm import PlainVLM

import imagereward as RM
from benchmarks.lib.tiny_vlms import ARCHITECTURES, WIDTH
from imagereward import errors
from imagereward.config import AdapterConfig
from imagereward.models.vlm.asking.templates import Template
from imagereward.models.vlm.backbone import Backbone

PROMPTS = ["a red bicycle", "two cats asleep on a green sofa, oil on canvas", "日本の桜"]
SHOWS = '{{image}}Does this picture show "{}"? Answer Yes or No.'
LAST_LAYER = dict.fromkeys(ARCHITECTURES, "backbone.model.model.language_model.layers.1")
LAST_LAYER["SmolVLM"] = "backbone.model.model.text_model.layers.1"
CLOSE = {"rtol": 2e-5, "atol": 1e-7}
BEFORE = Template(
    "before",
    'Here is a picture, and then a question about it. {image}Does it show "{prompt}"? Answer Yes or No.',
    answers=("Yes",),
)


@pytest.fixture(scope="module")
def judges(tiny_vlm):
    """A function that gives a judge of an architecture, a copy that a test may change."""
    kept = {}

    def judge(architecture="Qwen2-VL", **options):
        key = (architecture, *options.items())
        if key not in kept:
            kept[key] = RM.load(f"vqa:{tiny_vlm(architecture)}", "cpu", **options)
        return copy.deepcopy(kept[key])

    return judge


def shaken(adapter, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapter.learned():
            value.add_(0.3 * torch.randn(value.shape, generator=generator))
    return adapter


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_default_places_are_the_last_quarter_of_the_language_model(architecture, judges):
    judge = judges(architecture)
    reft = judge.add_adapter(AdapterConfig("loreft", "reft", rank=2))
    assert reft.config.modules == (LAST_LAYER[architecture],)  # one of two
    assert [tuple(group.keys()) for group in reft.layers] == [("first", "last")]
    lora = judge.add_adapter(AdapterConfig("lora", "lora", rank=2))
    assert set(lora.config.modules) == {
        f"{LAST_LAYER[architecture]}.self_attn.{name}" for name in ("q_proj", "v_proj")
    }
    text = judge.add_adapter(AdapterConfig("direft", "text", ("text",), rank=2))
    assert text.config.modules == tuple(LAST_LAYER[architecture][:-1] + str(layer) for layer in (0, 1))
    image = judge.add_adapter(AdapterConfig("direft", "image", ("image",), rank=2, positions="all"))
    assert len(image.config.modules) == (3 if architecture == "Qwen3-VL" else 2)
    picture = pictures(1)[0]
    with judge.using_adapters():
        base = judge.score(PROMPTS[0], picture)
    for name in judge.adapters:
        shaken(judge.adapters[name])
        with judge.using_adapters(name):
            assert judge.score(PROMPTS[0], picture) != pytest.approx(base, rel=1e-5), name


def test_a_quarter_is_a_quarter(judges):
    judge = judges()
    layers = judge.backbone.model.model.language_model.layers
    layers.extend(copy.deepcopy(layers[0]) for _ in range(7))  # nine
    streams = judge.token_streams()
    assert [path.rpartition(".")[2] for path in streams["late"].layers] == ["7", "8"]
    assert len(streams["text"].layers) == 9


@pytest.mark.parametrize("architecture", ["Qwen2-VL", "Gemma 3", "InternVL"])
@pytest.mark.parametrize("positions", ["f1+l1", "f3", "l2", "all"])
def test_states_change_at_their_positions_as_in_a_loop_over_plain_transformers(
    architecture, positions, judges, tiny_vlm
):
    """h + R^T (W h + b - R h), by a hook on a model of transformers that is given a row at a time."""
    judge, images = judges(architecture), pictures(2)
    path = LAST_LAYER[architecture][:-1] + "0"  # what changes after the last layer reaches no other token
    adapter = shaken(judge.add_adapter(AdapterConfig("loreft", "mine", (path,), rank=3, positions=positions)))
    found = judge.score_matrix(PROMPTS, images)
    plain = PlainVLM(tiny_vlm(architecture))
    layer = plain.model.get_submodule(path.removeprefix("backbone.model."))

    def changed(module, args, output):
        h = (output[0] if isinstance(output, tuple) else output).clone()
        count = h.shape[1]
        places = {
            "f1+l1": {"first": [0], "last": [count - 1]},
            "f3": {"first": [0, 1, 2]},
            "l2": {"last": [count - 2, count - 1]},
            "all": {"first": range(count)},
        }[positions]
        for group, chosen in places.items():
            part = adapter.layers[0][group]
            rows, w, b = (each.detach() for each in (part.up.weight, part.source.weight, part.source.bias))
            for place in chosen:
                state = h[0, place].clone()
                h[0, place] = state + rows.T @ (w @ state + b - rows @ state)
        return (h, *output[1:]) if isinstance(output, tuple) else h

    handle = layer.register_forward_hook(changed)
    expected = [[plain.probability("Yes", SHOWS.format(p), image) for image in images] for p in PROMPTS]
    handle.remove()
    np.testing.assert_allclose(found, expected, rtol=5e-5, atol=1e-7)
    with judge.using_adapters():
        assert np.abs(judge.score_matrix(PROMPTS, images) - found).max() > 1e-6


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    ("form", "positions"), [("loreft", "f2+l1"), ("direft", "f4"), ("nodireft", "all"), ("lora", "f1+l1")]
)
def test_batches_sharing_and_matrices_change_no_score(architecture, form, positions, judges):
    judge, images = judges(architecture), pictures(3)
    base = judge.score_matrix(PROMPTS, images)
    config = AdapterConfig(form, "mine", ("text",), rank=3, positions=positions)
    shaken(judge.add_adapter(config))
    matrix = judge.score_matrix(PROMPTS, images)
    assert np.abs(matrix / base - 1).max() > 1e-3
    alone = [[judge.score(prompt, image) for image in images] for prompt in PROMPTS]
    np.testing.assert_allclose(matrix, alone, **CLOSE)
    np.testing.assert_allclose(judge.score_matrix(PROMPTS, images, batch_size=2), matrix, **CLOSE)
    judge.states.share = False
    np.testing.assert_allclose(judge.score_matrix(PROMPTS, images), matrix, **CLOSE)
    judge.states.share = True
    with judge.using_adapters():
        np.testing.assert_allclose(judge.score_matrix(PROMPTS, images), base, **CLOSE)
    judge.remove_adapter("mine")
    np.testing.assert_array_equal(judge.score_matrix(PROMPTS, images), base)


@pytest.mark.parametrize(("form", "positions"), [("direft", "f4"), ("nodireft", "all"), ("lora", "f1+l1")])
def test_words_before_the_image_are_shared_and_change_no_score(form, positions, judges):
    judge, images = judges(template=BEFORE), pictures(3)
    base = judge.score_matrix(PROMPTS, images)
    shaken(judge.add_adapter(AdapterConfig(form, "mine", ("text",), rank=3, positions=positions)))
    matrix = judge.score_matrix(PROMPTS, images)
    judge.states.share = False
    np.testing.assert_allclose(judge.score_matrix(PROMPTS, images), matrix, **CLOSE)
    assert np.abs(matrix / base - 1).max() > 1e-3


def test_a_kept_beginning_is_forgotten_with_the_weights_that_it_was_made_by(judges):
    judge, other, images = judges(template=BEFORE), judges(template=BEFORE), pictures(2)
    judge.score_matrix(PROMPTS, images)
    with torch.no_grad():
        for value in other.parameters():
            value.mul_(1.1)
    other.states.forget()
    expected = other.score_matrix(PROMPTS, images)
    judge.load_state_dict(other.state_dict())
    np.testing.assert_array_equal(judge.score_matrix(PROMPTS, images), expected)


def test_a_judge_whose_score_has_no_gradient_teaches_no_adapter(tiny_vlm, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"prompt": "a", "vqa_list": ["Is it?"]}')
    for judge in (
        RM.load(f"judge:{tiny_vlm()}", "cpu"),
        RM.load(f"vqa:{tiny_vlm()}", "cpu", questions=str(tmp_path / "q.jsonl")),
    ):
        assert not judge.differentiable
        with pytest.raises(errors.InputError, match="have no gradient, since it writes its verdict or asks"):
            RM.personalise(judge, rankings(8), kind="lora")
        assert not len(judge.adapters)


def test_a_kept_beginning_is_not_taken_for_that_of_another_adapter(judges):
    judge, images = judges(template=BEFORE), pictures(2)
    rows = [judge.score_matrix(PROMPTS, images)]
    assert judge.states._beginning is not None  # else nothing is tested
    for seed in (1, 2):
        adapter = judge.add_adapter(AdapterConfig("lora", "mine", ("text",), rank=2))
        shaken(adapter, seed)
        rows.append(judge.score_matrix(PROMPTS, images))
        fresh = copy.deepcopy(judge)
        fresh.states.forget()
        np.testing.assert_array_equal(fresh.score_matrix(PROMPTS, images), rows[-1])
        judge.remove_adapter("mine")
        np.testing.assert_array_equal(judge.score_matrix(PROMPTS, images), rows[0])
    assert np.abs(rows[1] - rows[2]).max() > 1e-6


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_gradients_reach_the_adapter_and_recomputing_changes_none_of_them(form, judges):
    found = []
    for enable in (False, True):
        judge = judges("SmolVLM")
        judge.set_grad_checkpointing(enable)
        adapter = shaken(judge.add_adapter(AdapterConfig(form, rank=2, modules=("text",))))
        adapter.let_learn()
        images = judge.encode_pixels(
            [judge.processor.collate([judge.processor.load(each) for each in pictures(2)])]
        )
        scores = [
            judge.head(images, [prompt], torch.tensor([[at, 0]])) for at, prompt in enumerate(PROMPTS[:2])
        ]
        (scores[0] - scores[1]).sum().backward()
        found.append([value.grad.clone() for value in adapter.learned()])
    assert all(gradient.abs().max() > 0 for gradient in found[0][:1])
    for plain, again in zip(*found, strict=True):
        torch.testing.assert_close(plain, again, atol=1e-8, rtol=1e-4)


def test_places_that_positions_cannot_tell_apart_are_refused(judges):
    judge = judges("Qwen2-VL")
    with pytest.raises(
        errors.InputError, match=r"positions=.*visual\.blocks\.0 has the tokens of all images"
    ):
        judge.add_adapter(AdapterConfig("loreft", modules=("image",)))
    writes = judges("Qwen2-VL", readout="verdict", template="rubric")
    with pytest.raises(errors.InputError, match=r'writes on after a row.*expected "f1" or the like'):
        writes.add_adapter(AdapterConfig("loreft"))
    writes.add_adapter(AdapterConfig("loreft", positions="f2"))
    with pytest.raises(errors.InputError, match=r"rank=99: backbone\.model\.model\..* has a width of 32"):
        judge.add_adapter(AdapterConfig("loreft", rank=99))
    with pytest.raises(
        errors.InputError, match=r"nearest: .*layers\.1.*valid: the streams text, late, image"
    ):
        judge.add_adapter(AdapterConfig("loreft", modules=("backbone.model.model.language_model.layer.1",)))
    assert WIDTH == 32
    assert not len(judge.adapters)


def test_a_writing_judge_writes_the_same_however_its_rows_are_shared(judges):
    judge, images = judges("Qwen2-VL", readout="verdict", template="rubric", new_tokens=6), pictures(2)
    plain = judge.written_texts(PROMPTS[:2], images)
    shaken(judge.add_adapter(AdapterConfig("loreft", modules=("text",), positions="f3", rank=3)), 3)
    texts = judge.written_texts(PROMPTS[:2], images)
    alone = [judge.written_texts([prompt], [image])[0] for prompt, image in zip(PROMPTS[:2], images)]
    judge.states.share = False
    assert judge.written_texts(PROMPTS[:2], images) == texts == alone
    assert texts != plain


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_files_of_an_adapter_and_of_a_judge_with_one(form, judges, tiny_vlm, tmp_path):
    judge, images = judges("Qwen2-VL"), pictures(2)
    base = judge.score_matrix(PROMPTS, images)
    adapter = shaken(judge.add_adapter(AdapterConfig(form, "taste", rank=2)))
    expected = judge.score_matrix(PROMPTS, images)
    adapter.save_pretrained(tmp_path / "taste")
    again = RM.load(f"vqa:{tiny_vlm('Qwen2-VL')}", "cpu", adapter=tmp_path / "taste")
    assert again.name.endswith("+taste")
    np.testing.assert_array_equal(again.score_matrix(PROMPTS, images), expected)
    judge.save_pretrained(tmp_path / "judge")
    np.testing.assert_array_equal(judge.score_matrix(PROMPTS, images), expected)  # still on
    whole = RM.load(tmp_path / "judge", "cpu")
    assert list(whole.adapters) == ["taste"]
    np.testing.assert_array_equal(whole.score_matrix(PROMPTS, images), expected)
    whole.remove_adapter("taste")
    np.testing.assert_array_equal(whole.score_matrix(PROMPTS, images), base)
    with pytest.raises(
        errors.CheckpointError, match=r"is an adapter for .*, and the weights of .* are others"
    ):
        RM.load(f"vqa:{tiny_vlm('Gemma 3')}", "cpu", adapter=tmp_path / "taste")
    (tmp_path / "judge/adapters/taste/adapter.safetensors").write_bytes(b"cut")
    with pytest.raises(errors.CheckpointError, match=r"adapter\.safetensors cannot be read"):
        RM.load(tmp_path / "judge", "cpu")


@pytest.mark.parametrize("architecture", ["Qwen2-VL", "LLaVA-OneVision"])
def test_a_taste_is_learned_with_every_image_encoded_once(architecture, judges, monkeypatch):
    judge, encoded = judges(architecture), []
    encode = Backbone.encode
    monkeypatch.setattr(
        Backbone, "encode", lambda self, batch: encoded.extend(found := encode(self, batch)) or found
    )
    records = rankings(8)
    image = records[0]["images"][0]
    before = judge.score("a cat", image)
    encoded.clear()
    _, summary = RM.personalise(judge, records, folds=2, epochs=2, rank=2, learning_rate=1e-2)
    assert len(encoded) == 24
    assert summary.choices == 8
    assert summary.clamped == 0
    assert judge.score("a cat", image) != before
    assert not any(value.requires_grad for value in judge.parameters())
    judge.remove_adapter("mine")
    assert judge.score("a cat", image) == before
