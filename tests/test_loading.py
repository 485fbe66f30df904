"""From files to scorers: formats, kinds, options, and every way in which a file can be the wrong one."""

import json
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from conftest import BLIP, CONFIGS, PROMPTS, pictures, small_scorer

import imagereward as RM
from imagereward import errors
from imagereward.checkpoints.registry import ASSETS, REGISTRY, Checkpoint
from imagereward.checkpoints.state_dicts import read_state_dict
from imagereward.config import ScorerConfig


@pytest.fixture
def small_registry(monkeypatch):
    """The registry with small architectures and without hashes: released formats can be tried quickly."""
    small = {
        "ImageReward-v1.0": "ImageReward",
        "CLIP": "CLIP",
        "BLIP": "BLIP",
        "Aesthetic": "Aesthetic",
        "HPSv2.0": "HPS",
        "HPSv2.1": "HPS",
        "PickScore-v1": "PickScore",
    }
    for name, kind in small.items():
        files = tuple(replace(file, sha256=None) for file in REGISTRY[name].files)
        monkeypatch.setitem(REGISTRY, name, replace(REGISTRY[name], config=CONFIGS[kind], files=files))


def released(kind: str, path) -> None:
    """Write a small scorer's weights the way the released file of that kind holds them."""
    state = small_scorer(kind).state_dict()
    bare = {name.removeprefix("blip.").removeprefix("clip_model."): value for name, value in state.items()}
    if kind == "ImageReward":
        torch.save({**state, "blip.text_encoder.embeddings.position_ids": torch.arange(512)[None]}, path)
    elif kind == "BLIP":
        torch.save(
            {"model": {**bare, "itm_head.weight": torch.zeros(2, 2), "queue_ptr": torch.zeros(1)}}, path
        )
    elif kind == "HPS":
        torch.save({"epoch": 1, "state_dict": bare}, path)
    else:
        safetensors.torch.save_file(bare, path)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ImageReward-v1.0", "ImageReward"),
        ("BLIP", "BLIP"),
        ("CLIP", "CLIP"),
        ("HPSv2.0", "HPS"),
        ("HPSv2.1", "HPS"),
    ],
)
def test_released_files_load_by_name_from_a_directory(small_registry, tmp_path, name, kind):
    released(kind, tmp_path / REGISTRY[name].files[0].name)
    model = RM.load(name, "cpu", tmp_path)
    assert model.name == name
    expected = small_scorer(kind).score(PROMPTS[0], pictures(2))
    np.testing.assert_allclose(model.score(PROMPTS[0], pictures(2)), expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["ImageReward", "BLIP"])
def test_a_lone_released_file_tells_its_kind_by_its_keys(small_registry, tmp_path, kind):
    released(kind, tmp_path / "some.pt")
    model = RM.load(tmp_path / "some.pt", "cpu")
    assert model.config.kind == kind
    assert model.name == "some.pt"


def test_a_lone_file_whose_keys_do_not_tell_asks_for_kind(small_registry, tmp_path):
    released("HPS", tmp_path / "hps.pt")
    with pytest.raises(errors.CheckpointError, match=r"kind='HPSv2.0' or 'HPSv2.1'"):
        RM.load(tmp_path / "hps.pt")
    assert RM.load(tmp_path / "hps.pt", kind="HPSv2.1").config.preprocess.resizing == "pad"
    with pytest.raises(errors.InputError, match="kind='HPS'"):
        RM.load(tmp_path / "hps.pt", kind="HPS")


def test_an_aesthetic_head_finds_its_clip_beside_it(small_registry, tmp_path):
    whole = small_scorer("Aesthetic")
    head = {n.removeprefix("mlp."): v for n, v in whole.state_dict().items() if n.startswith("mlp.")}
    clip = {n.removeprefix("clip_model."): v for n, v in whole.state_dict().items() if n.startswith("clip_")}
    torch.save(head, tmp_path / "sac+logos+ava1-l14-linearMSE.pth", _use_new_zipfile_serialization=False)
    safetensors.torch.save_file(clip, tmp_path / "open_clip_model.safetensors")
    expected = whole.score("", pictures(2))
    for source in ("Aesthetic", tmp_path / "sac+logos+ava1-l14-linearMSE.pth"):
        np.testing.assert_allclose(
            RM.load(source, "cpu", tmp_path).score("", pictures(2)), expected, atol=1e-6
        )
    both = RM.ensemble({"CLIP": 1.0, "Aesthetic": 1.0}, device="cpu", download_root=tmp_path)
    assert both.scorers[0].clip_model is both.scorers[1].clip_model


@pytest.mark.parametrize("kind", CONFIGS)
def test_a_saved_scorer_loads_with_equal_scores_and_definition(tmp_path, kind):
    scorer = small_scorer(kind)
    scorer.save_pretrained(tmp_path / "saved")
    again = RM.load(tmp_path / "saved", "cpu")
    assert again.config == scorer.config
    before, after = scorer.state_dict(), again.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    # Some processors sum in another order where memory is not aligned to 64 bytes, as a mapped file's is not.
    expected = pytest.approx(scorer.score(PROMPTS[0], pictures(3)), abs=1e-6)
    assert again.score(PROMPTS[0], pictures(3)) == expected
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]
    again.save_pretrained(tmp_path / "saved")  # over the very file its weights are mapped from
    assert RM.load(tmp_path / "saved", "cpu").score(PROMPTS[0], pictures(3)) == expected


def test_state_dict_names_are_those_of_the_original(tmp_path):
    state = small_scorer("ImageReward").state_dict()
    for name in (
        "blip.visual_encoder.blocks.1.attn.qkv.weight",
        "blip.text_encoder.embeddings.word_embeddings.weight",
        "blip.text_encoder.encoder.layer.1.crossattention.self.key.weight",
        "blip.text_encoder.encoder.layer.0.attention.output.LayerNorm.bias",
        "blip.text_proj.weight",
        "mlp.layers.7.weight",
    ):
        assert name in state
    torch.save(state, tmp_path / "x.pt")
    small_scorer("ImageReward", seed=1).load_state_dict(torch.load(tmp_path / "x.pt"))


def test_full_size_names_and_shapes_are_the_released_ones():
    from golden.weights import SHAPES

    from imagereward.models import model_class

    for name, part, prefix in (("ImageReward-v1.0", "ImageReward", ""), ("CLIP", "CLIP", "clip_model.")):
        config = REGISTRY[name].config
        with torch.device("meta"):
            state = model_class(config.kind)(config).state_dict()
        ours = {key.removeprefix(prefix): list(value.shape) for key, value in state.items()}
        assert ours == SHAPES[part]


def test_a_data_parallel_prefix_is_taken_off(small_registry, tmp_path):
    state = small_scorer("ImageReward").state_dict()
    torch.save({f"module.{name}": value for name, value in state.items()}, tmp_path / "ddp.pt")
    expected = small_scorer("ImageReward").score("a", pictures(1))
    assert RM.load(tmp_path / "ddp.pt", "cpu").score("a", pictures(1)) == expected


def test_float32_weights_on_the_cpu_are_mapped_and_frozen(small_registry, tmp_path):
    released("ImageReward", tmp_path / "x.pt")
    model = RM.load(tmp_path / "x.pt", "cpu")
    state = read_state_dict(tmp_path / "x.pt")
    maps = Path("/proc/self/maps")
    assert not maps.exists() or str(tmp_path / "x.pt") in maps.read_text()
    assert all(not parameter.requires_grad for parameter in model.parameters())
    assert not model.training
    assert torch.equal(state["mlp.layers.0.weight"], model.mlp.layers[0].weight)
    assert not any(value.is_meta for value in [*model.parameters(), *model.buffers()])


@pytest.mark.parametrize("dtype", ["float16", torch.bfloat16])
def test_half_precision_keeps_the_head_in_float32(small_registry, tmp_path, dtype):
    released("ImageReward", tmp_path / "x.pt")
    model = RM.load(tmp_path / "x.pt", "cpu", dtype=dtype)
    assert model.dtype in (torch.float16, torch.bfloat16)
    assert model.mlp.layers[0].weight.dtype == torch.float32


def test_max_length_reads_more_of_the_prompt(small_registry, tmp_path):
    released("ImageReward", tmp_path / "x.pt")
    long = " ".join(f"word{n}" for n in range(60))
    short, whole = (RM.load(tmp_path / "x.pt", "cpu", max_length=n) for n in (35, 512))
    assert not whole.rank(long, pictures(1)).truncated
    with pytest.warns(errors.PromptTruncatedWarning):
        assert short.score(long, pictures(1)) != whole.score(long, pictures(1))
    for bad in (0, 1, 513, "35"):
        with pytest.raises(errors.InputError, match="max_length"):
            RM.load(tmp_path / "x.pt", max_length=bad)


def test_med_config_gives_the_text_encoders_shape(small_registry, tmp_path, monkeypatch):
    released("ImageReward", tmp_path / "x.pt")
    wide = {**BLIP, "text": {"width": 32, "depth": 7, "heads": 4, "mlp_width": 8}}
    monkeypatch.setitem(
        REGISTRY,
        "ImageReward-v1.0",
        replace(REGISTRY["ImageReward-v1.0"], config=replace(CONFIGS["ImageReward"], architecture=wide)),
    )
    med = tmp_path / "med.json"
    med.write_text(
        json.dumps(
            {
                "hidden_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "intermediate_size": 64,
                "model_type": "bert",
            }
        )
    )
    expected = small_scorer("ImageReward").score("a", pictures(1))
    assert RM.load(tmp_path / "x.pt", "cpu", None, med).score("a", pictures(1)) == expected
    with pytest.raises(errors.InputError, match="cannot be read"):
        RM.load(tmp_path / "x.pt", med_config=tmp_path / "absent.json")
    for wrong in ("5", "[]", '{"hidden_size": "a"}', '{"num_attention_heads": 5}'):
        med.write_text(wrong)
        with pytest.raises(errors.InputError):
            RM.load(tmp_path / "x.pt", med_config=med)


@pytest.mark.skipif(not shutil.which("c++"), reason="torch.compile needs a C++ compiler")
def test_compiled_towers_give_the_same_scores(small_registry, tmp_path):
    released("ImageReward", tmp_path / "x.pt")
    plain, compiled = (RM.load(tmp_path / "x.pt", "cpu", compile=flag) for flag in (False, True))
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    np.testing.assert_allclose(
        compiled.score_matrix(PROMPTS, pictures(3)), plain.score_matrix(PROMPTS, pictures(3)), atol=1e-5
    )


def test_load_score_defaults_to_clip(small_registry, tmp_path):
    released("CLIP", tmp_path / "open_clip_model.safetensors")
    assert RM.load_score(download_root=tmp_path).name == "CLIP"
    assert RM.load_score("CLIP", "cpu", tmp_path).device.type == "cpu"
    assert RM.available_scores() == ["CLIP", "BLIP", "Aesthetic"]
    preference = ["ImageReward-v1.0", "HPSv2.0", "HPSv2.1", "PickScore-v1", "ImageReward-tiny"]
    assert RM.available_models() == preference


# Wrong files.


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(RuntimeError, match=r"did you mean 'ImageReward-v1.0'.*PickScore-v1"):
        RM.load("ImageReward-v1")


def test_missing_unexpected_and_misshapen_keys_are_listed(small_registry, tmp_path):
    state = small_scorer("ImageReward").state_dict()
    del state["blip.text_proj.bias"]
    state["blip.extra.weight"] = torch.zeros(1)
    state["mlp.layers.0.weight"] = torch.zeros(3, 3)
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(errors.CheckpointError) as caught:
        RM.load(tmp_path / "x.pt")
    message = str(caught.value)
    assert "1 missing: blip.text_proj.bias" in message
    assert "1 unexpected: blip.extra.weight" in message
    assert "mlp.layers.0.weight (3, 3), expected (1024, 32)" in message


def test_another_models_checkpoint_is_refused(small_registry, tmp_path):
    torch.save({"conv1.weight": torch.zeros(3), "fc.bias": torch.zeros(2)}, tmp_path / "resnet.pt")
    with pytest.raises(errors.CheckpointError, match=r"no checkpoint of a known kind.*conv1.weight"):
        RM.load(tmp_path / "resnet.pt")
    released("CLIP", tmp_path / "clip.safetensors")
    with pytest.raises(errors.CheckpointError, match="does not fit a scorer of kind ImageReward"):
        RM.load(tmp_path / "clip.safetensors", kind="ImageReward-v1.0")


@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_a_half_downloaded_file_is_refused(tmp_path, name, share):
    state = small_scorer("CLIP").state_dict()
    whole = tmp_path / name
    safetensors.torch.save_file(state, whole) if whole.suffix != ".pt" else torch.save(state, whole)
    data = whole.read_bytes()
    whole.write_bytes(data[: int(share * len(data))])
    with pytest.raises(errors.CheckpointError, match="half-downloaded"):
        RM.load(whole)


class Payload:
    """Pickles to a call that would create the file it names."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("writer", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_code_in_a_checkpoint_is_never_run(tmp_path, writer):
    writer({"weights": Payload(tmp_path / "owned")}, tmp_path / "evil.pt")
    with pytest.raises(errors.CheckpointError):
        RM.load(tmp_path / "evil.pt")
    assert not (tmp_path / "owned").exists()


def test_a_torchscript_archive_is_refused(tmp_path):
    torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2)).save(str(tmp_path / "ViT-L-14.pt"))
    with pytest.raises(errors.CheckpointError, match="TorchScript"):
        RM.load(tmp_path / "ViT-L-14.pt")


def test_a_file_without_tensors_is_refused(tmp_path):
    for number, value in enumerate(({}, {"a": 1}, [1, 2], torch.zeros(3))):
        torch.save(value, tmp_path / f"{number}.pt")
        with pytest.raises(errors.CheckpointError):
            RM.load(tmp_path / f"{number}.pt")


@pytest.mark.parametrize(
    "config",
    ["{", "[]", "{}", '{"scorer": {"kind": "CLIP", "colour": 1}}', '{"scorer": {"kind": "Nothing"}}'],
)
def test_a_directory_with_a_wrong_config_is_refused(tmp_path, config):
    small_scorer("CLIP").save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(errors.CheckpointError):
        RM.load(tmp_path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("kind",), ["a"]),
        (("architecture",), None),
        (("architecture",), "nope"),
        (("architecture", "vision_cfg", "patch_size"), 0),
        (("architecture", "vision_cfg", "colour"), 1),
        (("architecture", "vision_cfg", "timm_model_name"), "hf-hub:a/b"),
        (("architecture", "text_cfg", "hf_model_name"), "a/b"),
        (("preprocess", "size"), "32"),
        (("preprocess", "resizing"), "foo"),
        (("preprocess", "mean"), [1]),
        (("max_length",), 1),
        (("max_length",), 10**6),
        (("std",), 0),
        (("mean",), float("nan")),
        (("scaled",), "no"),
    ],
    ids=str,
)
def test_a_config_that_defines_no_score_is_refused(tmp_path, path, value):
    small_scorer("CLIP").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    *parents, last = path
    place = config["scorer"]
    for key in parents:
        place = place[key]
    place[last] = value
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises((errors.CheckpointError, errors.InputError)):
        RM.load(tmp_path, local_files_only=True)


@pytest.mark.parametrize("name", ["", "~no-such-user", "x" * 5000, "../x", "a\0b"])
def test_a_name_that_is_nothing_is_a_checkpoint_error(name):
    with pytest.raises(errors.CheckpointError):
        RM.load(name, local_files_only=True)


@pytest.mark.parametrize("content", [b"hello world", b"GIF89a", b"\x80\x02.", b"PK\x03\x04" + bytes(99)])
def test_a_file_that_is_no_checkpoint_at_all_is_a_checkpoint_error(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(errors.CheckpointError, match=r"x\.pt"):
        RM.load(tmp_path / "x.pt")


def test_kind_is_refused_where_it_would_be_ignored(tmp_path):
    small_scorer("CLIP").save_pretrained(tmp_path)
    with pytest.raises(errors.InputError, match="is for checkpoint files"):
        RM.load(tmp_path, kind="BLIP")


def test_an_unknown_config_key_names_the_nearest():
    from imagereward.config import ScorerConfig

    with pytest.raises(errors.InputError, match="did you mean 'max_length'"):
        ScorerConfig.from_dict({"kind": "CLIP", "max_lenght": 3})


def test_an_empty_directory_is_refused(tmp_path):
    with pytest.raises(errors.CheckpointError, match=r"config.json is missing"):
        RM.load(tmp_path)


@pytest.mark.parametrize("device", ["cuda:99", "warp", "meta:x"])
def test_a_device_that_is_not_there_is_named_before_anything_is_read(device):
    with pytest.raises(errors.DeviceError, match="present: cpu"):
        RM.load("CLIP", device)


@pytest.mark.parametrize("dtype", ["float8", torch.int8, 16])
def test_an_unknown_dtype_lists_the_known_ones(dtype):
    with pytest.raises(errors.InputError, match="float32, float16, bfloat16"):
        RM.load("CLIP", dtype=dtype)


def test_push_to_hub_uploads_what_save_pretrained_writes(monkeypatch):
    import huggingface_hub

    seen = {}

    class Api:
        def __init__(self, token=None):
            seen["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            return f"https://hub.example/{repo_id}"

        def upload_folder(self, *, repo_id, folder_path, commit_message):
            seen["model"] = RM.load(folder_path)

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    scorer = small_scorer("CLIP")
    assert scorer.push_to_hub("me/clip", token="secret") == "https://hub.example/me/clip"
    assert seen["model"].score("a", pictures(1)) == scorer.score("a", pictures(1))


def test_every_registered_checkpoint_is_complete():
    assert len(REGISTRY) == 8
    for entry in REGISTRY.values():
        assert isinstance(entry, Checkpoint)
        assert entry.licence
        assert entry.paper
        assert all(file.hub or file.url or (ASSETS / file.name).is_file() for file in entry.files)


@pytest.mark.parametrize(
    "name",
    [
        "./nope",
        "../nope",
        "~/nope",
        "nope/",
        "a/b/c",
        "/no/such/place",
        r"C:\models\nope",
        "nope.pt",
        "a/nope.pth",
    ],
)
def test_a_path_that_does_not_exist_is_said_to_be_one_and_not_looked_for_on_the_hub(
    tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(errors.CheckpointError, match="does not exist; expected a checkpoint file") as caught:
        RM.load(name)
    assert name in str(caught.value)


def test_a_hub_id_that_cannot_be_had_might_have_been_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(errors.DownloadError, match="no directory models/nope here, and as a hub id"):
        RM.load("models/nope", local_files_only=True)


def test_a_save_that_fails_leaves_the_saved_scorer_as_it_was_and_nothing_beside_it(tmp_path):
    small_scorer("CLIP", seed=1).save_pretrained(tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    another = small_scorer("CLIP", seed=2)
    resource = pytest.importorskip("resource")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
        with pytest.raises(errors.OutputError, match=r"model\.safetensors cannot be written"):
            another.save_pretrained(tmp_path / "saved")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.OutputError, match="cannot be written"):
        another.save_pretrained(tmp_path / "file" / "saved")


@pytest.mark.parametrize(
    ("adapters", "message"),
    [
        ([{"kind": "LoRA"}], "kind='LoRA': did you mean 'lora'"),
        ([{"knd": "lora"}], "AdapterConfig has no 'knd'; did you mean 'kind'"),
        ([3], r"adapters=\[3\]: expected a list"),
        ("LoRA", "adapters='LoRA': expected a list"),
    ],
)
def test_adapters_have_a_place_in_the_config(adapters, message):
    config = CONFIGS["CLIP"]
    assert config.adapters == ()
    assert ScorerConfig.from_dict(config.to_dict()) == config
    assert ScorerConfig.from_dict({**config.to_dict(), "adapters": []}) == config
    with pytest.raises(errors.InputError, match=message):
        ScorerConfig.from_dict({**config.to_dict(), "adapters": adapters})
