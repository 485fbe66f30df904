"""Every contract of a scorer with adapters on it: batches, padding, matrices, gradients, caches, files."""

import copy
import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from conftest import CONFIGS, PROMPTS, SIZE, pictures, small_scorer

import imagereward as RM
from imagereward import errors
from imagereward.adapters.interventions import INTERVENTIONS
from imagereward.bulk.decoding.cache import tower_of
from imagereward.config import AdapterConfig, ScorerConfig

CLOSE = {"atol": 2e-5, "rtol": 0}
KINDS = [*sorted(INTERVENTIONS), "lora"]
BOTH = ("text", "image")


def adapted(kind: str, config: AdapterConfig, seed: int = 1, **options):
    """A small scorer with an adapter whose weights are moved by noise."""
    scorer = small_scorer(kind, **options)
    return scorer, shaken(scorer.add_adapter(config), seed)


def shaken(adapter, seed: int = 1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapter.learned():
            value.add_(0.2 * torch.randn(value.shape, generator=generator).to(value))
    return adapter


def modules_of(kind: str) -> tuple[str, ...]:
    return ("image",) if kind == "Aesthetic" else BOTH


@pytest.mark.parametrize("form", ["loreft", "nodireft", "lora"])
@pytest.mark.parametrize("kind", CONFIGS)
def test_batches_padding_and_matrices_change_no_score(kind, form):
    scorer, _ = adapted(kind, AdapterConfig(form, "mine", modules_of(kind), rank=3, positions="f2+l3"))
    images = pictures(5)
    base = small_scorer(kind).score_matrix(PROMPTS, images)
    matrix = scorer.score_matrix(PROMPTS, images)
    assert np.abs(matrix - base).max() > 1e-3
    alone = [[scorer.score(prompt, image) for image in images] for prompt in PROMPTS]
    np.testing.assert_allclose(matrix, alone, **CLOSE)
    np.testing.assert_allclose(scorer.score_matrix(PROMPTS, images, batch_size=2), matrix, **CLOSE)
    four = images[: len(PROMPTS)]
    np.testing.assert_allclose(scorer.score_pairs(PROMPTS, four), np.diag(matrix[:, :4]), **CLOSE)
    with scorer.using_adapters():
        np.testing.assert_array_equal(scorer.score_matrix(PROMPTS, images), base)
    np.testing.assert_array_equal(scorer.score_matrix(PROMPTS, images), matrix)
    scorer.remove_adapter("mine")
    np.testing.assert_array_equal(scorer.score_matrix(PROMPTS, images), base)
    assert scorer.state_dict().keys() == small_scorer(kind).state_dict().keys()
    assert scorer.config == CONFIGS[kind]


@pytest.mark.parametrize("form", KINDS)
def test_full_padding_equals_trimmed_padding(form):
    scorer, _ = adapted("ImageReward", AdapterConfig(form, modules=BOTH, positions="f2+l2"))
    image = scorer.preprocess(pictures(1)[0])[None]
    for prompt in PROMPTS:
        ids, mask = scorer.blip.wordpiece.encode([prompt], 35)
        full = torch.nn.functional.pad(ids, (0, 35 - ids.shape[1]))
        padded = torch.nn.functional.pad(mask, (0, 35 - mask.shape[1]))
        with torch.no_grad():
            reward = scorer.score_gard(full, padded, image)
        assert reward.item() == pytest.approx(scorer.score(prompt, pictures(1)[0]), abs=2e-5)


def test_a_last_layer_that_computes_the_first_token_alone_gives_the_same():
    scorer, _ = adapted("ImageReward", AdapterConfig("loreft", positions="f2+l2"))
    ids, mask = scorer.encode_prompts(PROMPTS)
    tokens = scorer.encode_images(torch.randn(4, 3, SIZE, SIZE))
    with torch.no_grad():
        short = scorer.blip.text_encoder(ids, mask, tokens, None, first_only=True)
        whole = scorer.blip.text_encoder(ids, mask, tokens, None)
    assert short.shape[1] == 1
    torch.testing.assert_close(short[:, 0], whole[:, 0], **CLOSE)


@pytest.mark.parametrize(
    "path", ["attention", "crossattention", "crossattention.output.dense", "output.dense"]
)
@pytest.mark.parametrize("depth", [0, 1])
def test_any_module_within_a_layer_may_be_changed(path, depth):
    path = f"blip.text_encoder.encoder.layer.{depth}.{path}"
    scorer, _ = adapted("ImageReward", AdapterConfig("direft", modules=(path,), positions="f1+l2"))
    images = pictures(3)
    matrix = scorer.score_matrix(PROMPTS, images)
    alone = [[scorer.score(prompt, image) for image in images] for prompt in PROMPTS]
    np.testing.assert_allclose(matrix, alone, **CLOSE)
    assert np.abs(matrix - small_scorer("ImageReward").score_matrix(PROMPTS, images)).max() > 1e-4


@pytest.mark.parametrize("form", ["loreft", "lora"])
@pytest.mark.parametrize("kind", ["ImageReward", "CLIP"])
def test_the_gradient_of_reward_equals_a_finite_difference_with_an_adapter(kind, form):
    scorer, adapter = adapted(kind, AdapterConfig(form, modules=BOTH), dtype="float64")
    generator = torch.Generator().manual_seed(0)
    pixels = (0.3 + 0.4 * torch.rand(1, 3, 40, 48, generator=generator).double()).requires_grad_()
    scorer.reward(pixels, PROMPTS[0]).sum().backward()
    direction = torch.randn(pixels.shape, generator=generator).double()
    with torch.no_grad():
        ahead, behind = (scorer.reward(pixels + s * 1e-5 * direction, PROMPTS[0]) for s in (1, -1))
    slope = ((ahead - behind) / 2e-5).item()
    assert (pixels.grad * direction).sum().item() == pytest.approx(slope, rel=1e-6)
    assert all(value.grad is None for value in adapter.learned())


@pytest.mark.parametrize("kind", ["ImageReward", "CLIP"])
def test_checkpointing_changes_no_gradient_of_an_adapter_also_after_another_prompt(kind):
    gradients = []
    for enable in (False, True):
        scorer, adapter = adapted(kind, AdapterConfig("loreft", modules=BOTH, positions="f2+l2"))
        scorer.set_grad_checkpointing(enable)
        adapter.let_learn()
        rewards = scorer.reward(torch.full((2, 3, SIZE, SIZE), 0.3), PROMPTS[:2])
        with torch.no_grad():
            scorer.reward(torch.full((1, 3, SIZE, SIZE), 0.3), PROMPTS[2])  # notes another mask
        (rewards[0] - rewards[1]).backward()
        gradients.append([value.grad.clone() for value in adapter.learned() if value.grad is not None])
    assert gradients[0]
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, atol=1e-6, rtol=1e-4)


def test_several_adapters_are_scaled_switched_and_composed():
    scorer, _ = adapted("ImageReward", AdapterConfig("loreft", "red"))
    shaken(scorer.add_adapter(AdapterConfig("lora", "calm"), scale=0.5), 2)
    image, prompt = pictures(1)[0], PROMPTS[0]
    both, base = scorer.score(prompt, image), small_scorer("ImageReward").score(prompt, image)
    assert list(scorer.adapters) == ["red", "calm"]
    with scorer.using_adapters("red"):
        red = scorer.score(prompt, image)
        with scorer.using_adapters():
            assert scorer.score(prompt, image) == base
        assert scorer.score(prompt, image) == red
    with scorer.using_adapters("red", calm=0.5):
        assert scorer.score(prompt, image) == both
    with scorer.using_adapters(red=0.0):
        assert scorer.score(prompt, image) == pytest.approx(base, abs=1e-6)
    assert len({round(each, 6) for each in (both, red, base)}) == 3
    message = "no adapter 'blue' is on the model; there are: red, calm"
    with pytest.raises(errors.InputError, match=message), scorer.using_adapters("blue"):
        pass
    with pytest.raises(errors.InputError, match="an adapter 'red' is on the model already"):
        scorer.add_adapter(AdapterConfig("loreft", "red"))
    assert scorer.score(prompt, image) == both


def test_two_loras_on_the_same_layers_are_both_counted():
    scorer, _ = adapted("ImageReward", AdapterConfig("lora", "one"))
    image, prompt = pictures(1)[0], PROMPTS[0]
    one = scorer.score(prompt, image)
    shaken(scorer.add_adapter(AdapterConfig("lora", "two")), 2)
    shaken(scorer.add_adapter(AdapterConfig("loreft", "three", ("blip.text_encoder.*.query",))), 3)
    assert scorer.adapters["one"].config.modules == scorer.adapters["two"].config.modules
    assert not [path for path in scorer.adapters["three"].config.modules if "base_layer" in path]
    assert scorer.score(prompt, image) != one
    with scorer.using_adapters("one"):
        assert scorer.score(prompt, image) == pytest.approx(one, abs=1e-6)
    with scorer.using_adapters("three"):
        three = scorer.score(prompt, image)
    scorer.remove_adapter("one")
    scorer.remove_adapter("two")
    assert scorer.score(prompt, image) == pytest.approx(three, abs=1e-6)
    scorer.remove_adapter("three")
    assert scorer.score(prompt, image) == small_scorer("ImageReward").score(prompt, image)
    assert scorer.state_dict().keys() == small_scorer("ImageReward").state_dict().keys()


def test_an_intervention_beneath_a_lora_stays_there_when_a_third_adapter_is_taken_off():
    places = ("blip.text_encoder.*.query",)
    scorer, _ = adapted("ImageReward", AdapterConfig("loreft", "first", places))
    shaken(scorer.add_adapter(AdapterConfig("lora", "second", places)), 2)
    expected = scorer.score(PROMPTS[0], pictures(1)[0])
    shaken(scorer.add_adapter(AdapterConfig("direft", "third")), 3)
    scorer.remove_adapter("third")
    assert scorer.score(PROMPTS[0], pictures(1)[0]) == expected


def test_a_name_loses_the_adapter_that_is_taken_off(models, tmp_path):
    scorer = RM.load(models["CLIP"], "cpu")
    for name in ("a", "ab"):
        scorer.add_adapter(AdapterConfig("loreft", name)).save_pretrained(tmp_path / name)
        scorer.remove_adapter(name)
    scorer = RM.load(f"{models['CLIP']}+{tmp_path / 'ab'}+{tmp_path / 'a'}", "cpu")
    assert scorer.name == "CLIP+ab+a"
    scorer.remove_adapter("a")
    assert scorer.name == "CLIP+ab"
    scorer.remove_adapter("ab")
    assert scorer.name == "CLIP"
    scorer = RM.load(f"{models['CLIP']}+{tmp_path / 'ab'}+{tmp_path / 'a'}", "cpu")
    scorer.remove_adapter("ab")
    assert scorer.name == "CLIP+a"


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_half_precision_keeps_adapters_in_float32_and_stays_near(form):
    config = AdapterConfig(form, modules=BOTH)
    exact, adapter = adapted("ImageReward", config)
    half = small_scorer("ImageReward", dtype="bfloat16")
    half.adapters.add(half, config, half.token_streams(), adapter.weights())
    assert {value.dtype for value in half.adapters["default"].learned()} == {torch.float32}
    for prompt in PROMPTS:
        assert half.score(prompt, pictures(1)[0]) == pytest.approx(
            exact.score(prompt, pictures(1)[0]), abs=0.1
        )


def test_a_text_adapter_keeps_the_cache_of_image_features_and_an_image_one_changes_its_key():
    base, text = small_scorer("ImageReward"), AdapterConfig("loreft", "t")
    key = tower_of(base)
    assert tower_of(adapted("ImageReward", text)[0]) == key
    keys = {key}
    for form in ("loreft", "lora"):
        scorer, adapter = adapted("ImageReward", AdapterConfig(form, "i", ("image",)))
        keys.add(tower_of(scorer))
        adapter.scale = 0.5
        keys.add(tower_of(scorer))
        shaken(adapter)
        keys.add(tower_of(scorer))
        with scorer.using_adapters():
            assert tower_of(scorer) == key
    assert len(keys) == 7


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_a_saved_adapter_gives_equal_bits_and_load_names_it(form, models, tmp_path):
    scorer = RM.load(models["CLIP"], "cpu")
    shaken(scorer.add_adapter(AdapterConfig(form, "mine")))
    expected = scorer.score_matrix(PROMPTS, pictures(3))
    where = scorer.adapters["mine"].save_pretrained(tmp_path / "my-taste")
    for again in (
        RM.load(models["CLIP"], "cpu", adapter=where),
        RM.load(f"{models['CLIP']}+{where}", "cpu"),
        RM.load(models["CLIP"], "cpu", adapter=str(where), dtype="float32"),
    ):
        np.testing.assert_array_equal(again.score_matrix(PROMPTS, pictures(3)), expected)
        assert again.name == "CLIP+my-taste"
        assert list(again.adapters) == ["mine"]
        assert (where / "adapter.safetensors") in again.files.values()
    config = json.loads((where / "config.json").read_text())["adapter"]
    assert config["base"] == "CLIP"
    half = RM.load(models["CLIP"], "cpu", adapter=where, dtype="float16")  # known again by its hash
    np.testing.assert_allclose(half.score_matrix(PROMPTS, pictures(3)), expected, atol=0.02)


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_a_scorer_is_saved_with_its_adapters(form, tmp_path):
    scorer, adapter = adapted("ImageReward", AdapterConfig(form, "mine", BOTH))
    adapter.scale = 0.7
    expected = scorer.score_matrix(PROMPTS, pictures(3))
    again = RM.load(scorer.save_pretrained(tmp_path / "whole"), "cpu")
    # Weights that are mapped from a file lie differently in memory, which decides the last bit.
    np.testing.assert_allclose(again.score_matrix(PROMPTS, pictures(3)), expected, **CLOSE)
    assert again.config.adapters == scorer.adapters.configs
    assert ScorerConfig.from_dict(json.loads(json.dumps(again.config.to_dict()))) == again.config
    again.remove_adapter("mine")
    base = small_scorer("ImageReward").score_matrix(PROMPTS, pictures(3))
    np.testing.assert_allclose(again.score_matrix(PROMPTS, pictures(3)), base, **CLOSE)


def test_another_base_is_refused_and_an_adapter_is_no_scorer(models, tmp_path):
    scorer = RM.load(models["CLIP"], "cpu")
    where = scorer.add_adapter(AdapterConfig("loreft", "mine")).save_pretrained(tmp_path / "mine")
    other = small_scorer("CLIP", seed=9)
    with pytest.raises(
        errors.CheckpointError, match="an adapter for CLIP, and the weights of CLIP are others"
    ):
        other.add_adapter(where)
    assert not len(other.adapters)
    hps = small_scorer("HPS", seed=5).save_pretrained(tmp_path / "HPS")
    with pytest.raises(errors.CheckpointError, match="the weights of HPS are others"):
        RM.load(hps, "cpu", adapter=where)
    with pytest.raises(errors.CheckpointError, match=r"mine is an adapter: load\('CLIP', adapter="):
        RM.load(where, "cpu")
    with pytest.raises(
        errors.CheckpointError, match="the adapter nowhere does not exist; expected a directory"
    ):
        RM.load(models["CLIP"], "cpu", adapter="nowhere")
    (hps / "adapter.safetensors").write_bytes(b"")
    with pytest.raises(errors.CheckpointError, match=r"config\.json describes no adapter"):
        RM.load(models["CLIP"], "cpu", adapter=hps)
    with pytest.raises(errors.InputError, match="compile=True and adapter="):
        RM.load(models["CLIP"], "cpu", adapter=where, compile=True)
    with pytest.raises(errors.InputError, match="put them on its components"):
        RM.ensemble({scorer: 1.0}).add_adapter(where)


def test_an_ensemble_takes_adapted_components_and_shares_no_tower_with_them(models, tmp_path):
    scorer = RM.load(models["CLIP"], "cpu")
    shaken(scorer.add_adapter(AdapterConfig("loreft", "mine", BOTH)))
    where = scorer.adapters["mine"].save_pretrained(tmp_path / "mine")
    name = f"{models['CLIP']}+{where}"
    both = RM.ensemble({models["CLIP"]: 1.0, name: 2.0}, device="cpu")
    images = pictures(3)
    base = RM.load(models["CLIP"], "cpu").score(PROMPTS[0], images)
    on = scorer.score(PROMPTS[0], images)
    components = both.score_components(PROMPTS[0], images)
    assert list(components) == ["CLIP", "CLIP+mine"]
    np.testing.assert_allclose(components["CLIP"], base, **CLOSE)
    np.testing.assert_allclose(components["CLIP+mine"], on, **CLOSE)
    assert np.abs(np.array(base) - on).max() > 1e-3


def test_a_tower_that_components_share_takes_no_adapter(monkeypatch, tmp_path):
    made = {kind: small_scorer(kind) for kind in ("CLIP", "Aesthetic", "HPS")}
    for kind in ("CLIP", "Aesthetic"):
        made[kind].files = {"clip_model.": tmp_path / "same-file"}
    monkeypatch.setattr("imagereward.ensembles.load", made.get)
    both, images = RM.ensemble(dict.fromkeys(made, 1.0)), pictures(2)
    clip, aesthetic, hps = both.scorers
    before = both.score_components(PROMPTS[0], images)
    message = "would change the scores of {} too, which shares clip_model in an ensemble.*NAME.ADAPTER"
    for scorer, other in ((clip, "Aesthetic"), (aesthetic, "CLIP")):
        for modules in (("image",), ("clip_model.visual",), ("clip_model.visual.ln_post",)):
            with pytest.raises(errors.InputError, match=message.format(other)):
                scorer.add_adapter(AdapterConfig("loreft", "mine", modules, width=8))
        config = AdapterConfig("loreft", "mine", ("image",))
        with pytest.raises(errors.InputError, match=message.format(other)):  # as `personalise` adds it
            scorer.adapters.add(scorer, config, scorer.token_streams())
    assert both.score_components(PROMPTS[0], images) == before
    shaken(aesthetic.add_adapter(AdapterConfig("loreft", "mine", ("mlp.layers.0",))))  # its own
    shaken(hps.add_adapter(AdapterConfig("loreft", "mine", BOTH)))  # it shares with none
    after = both.score_components(PROMPTS[0], images)
    changed = {name: np.abs(np.subtract(after[name], before[name])).max() > 1e-5 for name in before}
    assert changed == {"CLIP": False, "Aesthetic": True, "HPS": True}


@pytest.mark.parametrize("form", ["loreft", "lora"])
def test_an_adapter_that_was_made_on_another_needs_it(form, models, tmp_path):
    images, name = pictures(2), models["CLIP"]
    scorer = RM.load(name, "cpu")
    shaken(scorer.add_adapter(AdapterConfig(form, "first")))
    shaken(scorer.add_adapter(AdapterConfig("direft", "second", ("text",))), 2)
    expected = scorer.score(PROMPTS[0], images)
    first, second = (scorer.adapters[each].save_pretrained(tmp_path / each) for each in ("first", "second"))
    message = "second was made for CLIP with other adapters on it, of which these are not on.*: first. Put"
    with pytest.raises(errors.CheckpointError, match=message):
        RM.load(name, "cpu", adapter=second)
    plain = RM.load(name, "cpu")
    shaken(plain.add_adapter(AdapterConfig(form, "first")), 3)  # one of the same name, with other weights
    with pytest.raises(errors.CheckpointError, match="second was made for CLIP with other adapters"):
        plain.add_adapter(second)
    for both in (f"{name}+{first}+{second}", f"{name}+{first}"):
        again = RM.load(both, "cpu", adapter=None if both.endswith("second") else second)
        assert list(again.adapters) == ["first", "second"]
        np.testing.assert_array_equal(again.score(PROMPTS[0], images), expected)
    half = RM.load(f"{name}+{first}", "cpu", dtype="bfloat16")  # known again: LoRA's stay float32
    half.add_adapter(second, scale=0.5)
    half.save_pretrained(tmp_path / "whole")
    assert list(RM.load(tmp_path / "whole", "cpu").adapters) == ["first", "second"]
    scorer.remove_adapter("first")  # what `second` was made on does not change by that
    once_more = scorer.adapters["second"].save_pretrained(tmp_path / "later")
    with pytest.raises(errors.CheckpointError, match="these are not on"):
        RM.load(name, "cpu", adapter=once_more)
    RM.load(f"{name}+{first}", "cpu", adapter=once_more)


def test_an_adapter_made_while_others_are_off_needs_none(models, tmp_path):
    scorer = RM.load(models["CLIP"], "cpu")
    scorer.add_adapter(AdapterConfig("loreft", "first"))
    with scorer.using_adapters():
        scorer.add_adapter(AdapterConfig("loreft", "second"))
    where = scorer.adapters["second"].save_pretrained(tmp_path / "second")
    assert list(RM.load(models["CLIP"], "cpu", adapter=where).adapters) == ["second"]


def test_a_copy_of_a_scorer_keeps_its_adapter_when_the_first_loses_it():
    for form in ("loreft", "lora"):
        scorer, _ = adapted("ImageReward", AdapterConfig(form, "mine"))
        twin, image = copy.deepcopy(scorer), pictures(1)[0]
        expected = scorer.score(PROMPTS[0], image)
        scorer.remove_adapter("mine")
        assert twin.score(PROMPTS[0], image) == expected
        twin.remove_adapter("mine")
        assert twin.score(PROMPTS[0], image) == scorer.score(PROMPTS[0], image)


def test_the_adapter_of_a_copy_is_saved_with_the_hash_of_the_copy(tmp_path):
    scorer, _ = adapted("CLIP", AdapterConfig("loreft", "mine"))
    twin = copy.deepcopy(scorer)
    for value in twin.clip_model.parameters():
        value.data = value.data + 1
    hashes = [
        json.loads((each.adapters["mine"].save_pretrained(tmp_path / name) / "config.json").read_text())
        for name, each in (("first", scorer), ("twin", twin))
    ]
    assert hashes[0]["adapter"]["weights"] != hashes[1]["adapter"]["weights"]
    del scorer
    assert twin.adapters["mine"].save_pretrained(tmp_path / "again").is_dir()


def test_a_scorer_is_not_saved_with_an_adapter_off(tmp_path):
    scorer, _ = adapted("CLIP", AdapterConfig("loreft", "mine"))
    with scorer.using_adapters(), pytest.raises(errors.InputError, match="the adapters mine are off"):
        scorer.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_file_of_a_saved_scorer_is_loaded_with_the_config_beside_it(tmp_path):
    scorer = small_scorer("ImageReward", seed=3)
    scorer.config = dataclasses.replace(scorer.config, mean=0.5)
    where = scorer.save_pretrained(tmp_path / "out")
    image = pictures(1)[0]
    assert RM.load(where / "model.safetensors", "cpu").score("a", image) == RM.load(where, "cpu").score(
        "a", image
    )


def test_push_to_hub_uploads_both_files_and_load_fetches_them(monkeypatch, models, tmp_path):
    uploaded = {}

    class Api:
        def __init__(self, token=None):
            assert token == "secret"

        def create_repo(self, repo_id, private, exist_ok):
            return f"https://hub.example/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            uploaded[repo_id] = commit_message

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    scorer = RM.load(models["CLIP"], "cpu")
    adapter = shaken(scorer.add_adapter(AdapterConfig("loreft", "mine")))
    assert adapter.push_to_hub("me/taste", token="secret") == "https://hub.example/me/taste"
    assert uploaded == {"me/taste": "mine, an adapter for CLIP, saved by imagereward"}
    assert sorted(path.name for path in (tmp_path / "hub").iterdir()) == [
        "adapter.safetensors",
        "config.json",
    ]
    monkeypatch.setattr(
        "imagereward.checkpoints.hub.fetch_from_hub", lambda repo, name, *rest: tmp_path / "hub" / name
    )
    again = RM.load(models["CLIP"], "cpu", adapter="me/taste")
    assert again.name == "CLIP+hub" or again.name == "CLIP+taste"
    assert again.score(PROMPTS[0], pictures(1)) == scorer.score(PROMPTS[0], pictures(1))
    where = adapter.save_pretrained(tmp_path / "mine")
    (where / "README.md").write_text(f"# mine\n\nmodel = RM.load('CLIP', adapter={str(where)!r})\n")
    (where / "summary.json").write_text('{"choices": 48}\n')
    again = RM.load(models["CLIP"], "cpu", adapter=where)
    loaded = again.adapters["mine"]
    for each in (adapter, loaded):
        shutil.rmtree(tmp_path / "hub")
        each.push_to_hub("me/taste", token="secret")
        assert (tmp_path / "hub/README.md").read_text() == (
            "# mine\n\nmodel = RM.load('CLIP', adapter='me/taste')\n"
        )
        assert (tmp_path / "hub/summary.json").read_bytes() == (where / "summary.json").read_bytes()
    shutil.rmtree(tmp_path / "hub")
    shaken(loaded).push_to_hub("me/taste", token="secret")  # the card is of other weights
    assert not (tmp_path / "hub/README.md").exists()


def test_an_adapter_of_the_hub_that_cannot_be_had_says_so(models):
    with pytest.raises(errors.DownloadError, match="there is no directory me/taste here, and as a hub id"):
        RM.load(models["CLIP"], "cpu", adapter="me/taste", local_files_only=True)
