"""Files of weights and configs that are made to hang, to fill memory, or to score without meaning."""

import json
import zipfile
from dataclasses import replace

import pytest
import safetensors.torch
import torch
from conftest import CONFIGS, pictures, small_scorer
from test_cli import error_of

import imagereward as RM
from imagereward import errors
from imagereward.checkpoints.hub import fetch
from imagereward.checkpoints.registry import REGISTRY
from imagereward.config import JSON_BYTES


@pytest.fixture
def small_model(monkeypatch):
    """ImageReward-v1.0 with a small architecture; its file keeps the hash of the released one."""
    entry = replace(REGISTRY["ImageReward-v1.0"], config=CONFIGS["ImageReward"])
    monkeypatch.setitem(REGISTRY, "ImageReward-v1.0", entry)


@pytest.fixture
def state(small_model):
    return dict(small_scorer("ImageReward").state_dict())


HEAD = "mlp.layers.0.weight"


def nested(value: torch.Tensor) -> torch.Tensor:
    return torch.nested.nested_tensor([value, value[:1]])


@pytest.mark.parametrize(
    "convert",
    [
        torch.Tensor.to_sparse,
        torch.Tensor.to_sparse_csr,
        lambda value: value.to("meta"),
        lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        nested,
    ],
    ids=["sparse", "sparse rows", "meta", "quantized", "nested"],
)
def test_tensors_that_do_not_hold_their_numbers_are_refused(state, tmp_path, convert):
    state[HEAD] = convert(state[HEAD].clone())
    torch.save(state, tmp_path / "x.pt")
    with pytest.raises(errors.CheckpointError, match=r"x\.pt"):
        RM.load(tmp_path / "x.pt", "cpu")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
@pytest.mark.parametrize("name", ["x.pt", "x.safetensors"])
def test_weights_that_are_no_floating_point_numbers_are_refused(state, tmp_path, dtype, name):
    state[HEAD] = state[HEAD].to(dtype)
    torch.save(state, tmp_path / name) if name == "x.pt" else safetensors.torch.save_file(
        state, tmp_path / name
    )
    with pytest.raises(errors.CheckpointError, match=rf"no floating-point numbers: {HEAD} {dtype}"):
        RM.load(tmp_path / name, "cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_any_usual_precision_are_taken(state, tmp_path, dtype):
    expected = small_scorer("ImageReward").score("a", pictures(1))
    torch.save({name: value.to(dtype) for name, value in state.items()}, tmp_path / "x.pt")
    assert RM.load(tmp_path / "x.pt", "cpu").score("a", pictures(1)) == pytest.approx(expected, abs=0.05)


def packed(path, state, level: int) -> None:
    """What torch.save writes, compressed."""
    torch.save(state, path.with_suffix(".plain"))
    with zipfile.ZipFile(path.with_suffix(".plain")) as plain, zipfile.ZipFile(path, "w", level) as archive:
        for member in plain.infolist():
            archive.writestr(member.filename, plain.read(member), level)


@pytest.mark.parametrize("level", [zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA, zipfile.ZIP_BZIP2])
def test_a_compressed_archive_is_refused_unread(tmp_path, capsys, level):
    packed(tmp_path / "x.pt", {"weight": torch.zeros(2**24)}, level)  # 64 MB in some 70 kB
    assert (tmp_path / "x.pt").stat().st_size < 2**20
    with pytest.raises(errors.CheckpointError, match="compressed archive"):
        RM.load(tmp_path / "x.pt")
    pictures(1)[0].save(tmp_path / "a.png")
    assert "compressed archive" in error_of(capsys, "score", "a", tmp_path / "a.png", "-m", tmp_path / "x.pt")


def test_an_archive_whose_members_share_their_bytes_is_refused(tmp_path):
    """The directory of the archive lists one member of 1 MB a thousand times."""
    torch.save({"weight": torch.zeros(2**18)}, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain:
        names = {member.filename: plain.read(member) for member in plain.infolist()}
    with zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_STORED) as archive:
        for name, data in names.items():
            archive.writestr(name, data)
        largest = max(archive.filelist, key=lambda member: member.file_size)
        for number in range(1000):
            twin = zipfile.ZipInfo(f"archive/data/{number + 10}")
            for field in ("header_offset", "file_size", "compress_size", "CRC", "compress_type"):
                setattr(twin, field, getattr(largest, field))
            archive.filelist.append(twin)
    with pytest.raises(errors.CheckpointError, match="unpacked"):
        RM.load(tmp_path / "x.pt")


@pytest.fixture
def directory(tmp_path):
    return small_scorer("CLIP").save_pretrained(tmp_path / "clip")


DEEP = {
    "lists": '{"scorer": ' + "[" * 1_000_000 + "]" * 1_000_000 + "}",
    "objects": '{"scorer": ' + '{"a":' * 100_000 + "1" + "}" * 100_001,
    "unclosed": "[" * 500_000,
    "behind a text": '{"a\\"[[[": "]]]", "scorer": ' + "[" * 40 + "]" * 40 + "}",
}


@pytest.mark.parametrize("name", DEEP)
def test_a_config_of_many_levels_is_refused(directory, name):
    (directory / "config.json").write_text(DEEP[name])
    with pytest.raises(errors.CheckpointError, match=r"levels deep|bytes"):
        RM.load(directory)


def test_a_config_of_many_bytes_is_refused(directory):
    config = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(config) + " " * JSON_BYTES)
    with pytest.raises(errors.CheckpointError, match="bytes"):
        RM.load(directory)
    with pytest.raises(errors.InputError, match="med_config"):
        RM.load(RM.load("ImageReward-tiny").files[""], med_config=directory / "config.json")


def test_brackets_within_texts_are_no_levels(directory):
    config = json.loads((directory / "config.json").read_text())
    config["note"] = "[" * 100 + '\\"{'
    (directory / "config.json").write_text(json.dumps(config))
    assert RM.load(directory, "cpu").score("a", pictures(1)) == small_scorer("CLIP").score("a", pictures(1))


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("vision_cfg", "layers"), 10**6),
        (("text_cfg", "layers"), 10**9),
        (("text_cfg", "context_length"), 10**7),
        (("vision_cfg", "width"), 2**40),
        (("embed_dim",), 2**62),
        (("vision_cfg", "layers"), [3, 4, 10**7, 3]),
    ],
    ids=str,
)
def test_a_network_that_nobody_has_trained_is_not_built(directory, path, value):
    config = json.loads((directory / "config.json").read_text())
    place = config["scorer"]["architecture"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises((errors.CheckpointError, errors.InputError), match="expected at most"):
        RM.load(directory)


@pytest.mark.parametrize(
    "name",
    ["local-dir:/etc", "local-dir:{}", "hf-hub:owner/name", "https://x.org/a", "/etc", "vit-l-14", "RN50 "],
)
def test_an_architecture_is_a_known_name_and_no_place(directory, tmp_path, name):
    """open_clip would read `local-dir:` from the disk and `hf-hub:` from the network."""
    place = tmp_path / "place"
    place.mkdir()
    architecture = CONFIGS["CLIP"].architecture
    (place / "open_clip_config.json").write_text(json.dumps({"model_cfg": architecture}))
    config = json.loads((directory / "config.json").read_text())
    config["scorer"]["architecture"] = name.format(place)
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises((errors.CheckpointError, errors.InputError), match=r"open_clip.list_models"):
        RM.load(directory)


@pytest.mark.parametrize("kind", ["ImageReward", "CLIP", "PickScore", "HPS", "Aesthetic"])
def test_the_default_device_does_not_move_a_scorer(models, kind):
    expected = RM.load(models[kind], "cpu").score_matrix(["a", "a red bicycle"], pictures(3))
    pixels = torch.rand(2, 3, 40, 40)
    rewards = RM.load(models[kind], "cpu").reward(pixels, "a")
    with torch.device("meta"):
        scorer = RM.load(models[kind], "cpu")
        found = scorer.score_matrix(["a", "a red bicycle"], pictures(3))
        again = scorer.reward(pixels, "a")
    assert not any(value.is_meta for value in [*scorer.parameters(), *scorer.buffers()])
    assert torch.equal(again, rewards)
    assert found.tolist() == expected.tolist()


# Files under the names of released ones.


def test_other_weights_under_a_released_name_are_refused(state, tmp_path, capsys):
    torch.save(state, tmp_path / "ImageReward.pt")
    with pytest.raises(errors.CheckpointError, match=r"ImageReward.pt is not the released.*sha256"):
        RM.load("ImageReward-v1.0", "cpu", tmp_path)
    pictures(1)[0].save(tmp_path / "a.png")
    options = ["--download-root", tmp_path]
    assert "is not the released" in error_of(capsys, "score", "a", tmp_path / "a.png", *options)
    assert (
        RM.load(tmp_path / "ImageReward.pt", "cpu").name == "ImageReward.pt"
    )  # by its path it is what it is


def test_a_damaged_head_beside_the_right_clip_is_refused(tmp_path):
    head = tmp_path / "sac+logos+ava1-l14-linearMSE.pth"
    head.write_bytes(b"PK\3\4")
    with pytest.raises(errors.CheckpointError, match="is not the released sac"):
        fetch(REGISTRY["Aesthetic"].files[1], tmp_path)


def test_every_entry_has_a_hash_or_says_that_it_has_none():
    for name, entry in REGISTRY.items():
        hashes = [file.packaged or file.sha256 is not None for file in entry.files]
        assert entry.checked == (
            "packaged" if name == "ImageReward-tiny" else "sha256" if all(hashes) else "not"
        )
        assert all(file.sha256 is None or len(bytes.fromhex(file.sha256)) == 32 for file in entry.files)
    assert [name for name, entry in REGISTRY.items() if entry.checked == "not"] == [
        "CLIP",
        "BLIP",
        "Aesthetic",
        "HPSv2.0",
        "HPSv2.1",
        "PickScore-v1",
    ]
