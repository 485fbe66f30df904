"""Adapters on any torch model: formulas against loops in NumPy, positions, orthonormal rows, saving, LoRA."""

import copy
import json
import math

import numpy as np
import pytest
import torch
from conftest import pictures, small_scorer
from torch import nn

from imagereward.adapters.collection import put_on
from imagereward.adapters.files import read_adapter, save_adapter
from imagereward.adapters.interventions import INTERVENTIONS
from imagereward.adapters.positions import clamped_rows, parse_positions, selected
from imagereward.adapters.streams import token_mask
from imagereward.config import AdapterConfig
from imagereward.errors import CheckpointError, InputError

KINDS = sorted(INTERVENTIONS)
BENT = {
    "none": lambda x: x,
    "relu": lambda x: max(x, 0.0),
    "gelu": lambda x: x * 0.5 * (1 + math.erf(x / math.sqrt(2))),
    "silu": lambda x: x / (1 + math.exp(-x)),
    "tanh": math.tanh,
}


class Toy(nn.Module):
    """Two linear layers over tokens [B, T, D]; the second gives a tuple."""

    def __init__(self, width: int = 6):
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Module()
        self.second.norm = nn.LayerNorm(width)
        self.third = nn.Identity()

    def forward(self, x):
        return self.third(self.second.norm(self.first(x)))


def toy(width: int = 6) -> Toy:
    torch.manual_seed(0)
    return Toy(width).double().requires_grad_(False)


def shaken(adapter, seed: int = 1):
    """The adapter with all that it learns moved by noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in adapter.learned():
            value.add_(0.5 * torch.randn(value.shape, generator=generator, dtype=torch.float64).to(value))
    return adapter


def changed_by_loops(kind, part, h_B_T_D, where_B_T, activation) -> np.ndarray:
    """h with the formula of `kind`, token by token and direction by direction, in NumPy float64."""
    rows = part.up.weight.detach().double().numpy()
    source = getattr(part, "source", None)
    weight = None if source is None else source.weight.detach().double().numpy()
    bias = (part.bias if source is None else source.bias).detach().double().numpy()
    result = h_B_T_D.detach().numpy().copy()
    for b, t in zip(*np.nonzero(where_B_T.numpy())):
        h = h_B_T_D[b, t].detach().numpy()
        for k in range(len(rows)):
            along = sum(rows[k][d] * h[d] for d in range(len(h)))
            if kind in ("lobireft", "consreft"):
                value = bias[k]
            else:
                value = BENT[activation](sum(weight[k][d] * h[d] for d in range(len(h))) + bias[k])
            if kind in ("loreft", "noreft", "consreft"):
                value -= along
            result[b, t] += value * rows[k]
    return result


def positions_by_counting(first: int, last: int, mask_B_T):
    """(first [B, T], last [B, T]) by lists of the real tokens' indices."""
    heads, tails = torch.zeros_like(mask_B_T), torch.zeros_like(mask_B_T)
    for row, mask in enumerate(mask_B_T.tolist()):
        real = [index for index, there in enumerate(mask) if there]
        back = min(last, len(real) // 2 if first else len(real))
        front = min(first, len(real) - len(real) // 2 if last else len(real))
        heads[row, real[:front]] = True
        tails[row, real[len(real) - back :]] = True
    return heads, tails


@pytest.mark.parametrize("activation", BENT)
@pytest.mark.parametrize("kind", KINDS)
def test_an_intervention_is_its_formula_at_its_positions_and_nothing_elsewhere(kind, activation):
    model, generator = toy(), torch.Generator().manual_seed(3)
    x = torch.randn(5, 7, 6, generator=generator, dtype=torch.float64)
    mask = torch.arange(7) < torch.tensor([7, 1, 2, 5, 4])[:, None]
    before = model.first(x)
    config = AdapterConfig(kind, modules=("first",), rank=3, positions="f2+l1", activation=activation)
    adapter = shaken(put_on(model, config))
    with token_mask(mask):
        after = model.first(x)
    first, last = positions_by_counting(2, 1, mask)
    parts = adapter.layers[0]
    expected = changed_by_loops(kind, parts["first"], before, first, activation)
    expected = changed_by_loops(kind, parts["last"], torch.tensor(expected), last, activation)
    np.testing.assert_allclose(after.numpy(), expected, atol=1e-6, rtol=0)
    untouched = ~(first | last)
    assert torch.equal(after[untouched], before[untouched])
    adapter.detach(model)
    assert torch.equal(model.first(x), before)


@pytest.mark.parametrize(
    ("text", "first", "last"),
    [("f1+l1", 1, 1), ("f7+l7", 7, 7), ("f3", 3, 0), ("l2", 0, 2), ("all", 99, 0), ("f1+l9", 1, 9)],
)
def test_positions_count_real_tokens_wherever_padding_is(text, first, last):
    generator = torch.Generator().manual_seed(len(text))
    mask = torch.rand(40, 9, generator=generator) < 0.6
    mask[:, 3] = True  # at least one
    found = selected(parse_positions(text), mask)
    heads, tails = positions_by_counting(first, last, mask)
    assert list(found) == [name for name, count in (("first", first), ("last", last)) if count]
    assert torch.equal(found.get("first", torch.zeros_like(mask)), heads)
    assert torch.equal(found.get("last", torch.zeros_like(mask)), tails)
    assert not (heads & tails).any()


def test_rows_with_fewer_tokens_than_positions_are_counted():
    assert clamped_rows("f2+l2", [3, 4, 10, 1]) == 2
    assert clamped_rows("f3", [2, 3, 4]) == 1
    assert clamped_rows("all", [1, 2]) == 0


@pytest.mark.parametrize("text", ["", "f0", "f1l1", "f1+", "+l1", "x3", "f1+l1 ", "F1", "f-1", 3, "f9999999"])
def test_other_positions_are_refused(text):
    with pytest.raises(InputError, match="positions="):
        parse_positions(text)


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.float32) for kind in ("loreft", "consreft", "lobireft", "direft")),
        ("loreft", torch.float64),
    ],
)
def test_rows_stay_orthonormal_through_500_steps_and_saving_gives_equal_bits(kind, dtype, tmp_path):
    model = toy(24).to(dtype)
    adapter = put_on(model, AdapterConfig(kind, modules=("first",), rank=6))
    adapter.let_learn()
    optimizer = torch.optim.AdamW(adapter.learned(), lr=0.02)  # with its weight decay of 0.01
    generator = torch.Generator().manual_seed(0)
    x, target = (torch.randn(4, 3, 24, generator=generator).to(dtype) for _ in range(2))
    start = (model(x) - target).square().mean().item()
    for _ in range(500):
        optimizer.zero_grad()
        loss = (model(x) - target).square().mean()
        loss.backward()
        optimizer.step()
    assert loss.item() < start - 0.01
    for group in ("first", "last"):
        rows = adapter.layers[0][group].up.weight.detach().double()
        assert (rows @ rows.T - torch.eye(6, dtype=torch.float64)).abs().max() < 1e-6
        assert rows.norm() > 2
    before = model(x).detach()
    adapter.save_pretrained(tmp_path / "saved")
    fresh = toy(24).to(dtype)
    config, weights = read_adapter(tmp_path / "saved")
    again = put_on(fresh, config, weights)
    assert torch.equal(fresh(x), before)
    assert torch.equal(again.layers[0]["first"].up.weight, adapter.layers[0]["first"].up.weight)
    assert sorted(path.name for path in (tmp_path / "saved").iterdir()) == [
        "adapter.safetensors",
        "config.json",
    ]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "consreft"])
def test_a_new_adapter_changes_nothing_yet_can_learn(kind):
    model, x = toy(), torch.randn(2, 4, 6, dtype=torch.float64)
    before = model(x)
    adapter = put_on(model, AdapterConfig(kind, modules=("first",), rank=2))
    torch.testing.assert_close(model(x), before, atol=1e-6, rtol=0)
    adapter.let_learn()
    model(x).square().sum().backward()
    assert any(value.grad is not None and value.grad.abs().max() > 1e-6 for value in adapter.learned())


def test_scale_several_adapters_and_shared_interventions():
    model, x = toy(), torch.randn(2, 4, 6, dtype=torch.float64)
    before = model.first(x)
    one = shaken(put_on(model, AdapterConfig("lobireft", "one", ("first",), rank=2, positions="all")))
    alone = model.first(x) - before
    one.scale = 0.25
    torch.testing.assert_close(model.first(x) - before, 0.25 * alone)
    two = shaken(put_on(model, AdapterConfig("lobireft", "two", ("first",), positions="f1+l1", shared=True)))
    assert list(two.layers[0]) == ["first"]
    one.enabled = False
    delta = model.first(x) - before
    assert torch.allclose(delta[:, 0], delta[:, -1])
    assert torch.allclose(delta[:, 1:-1], torch.zeros(2, 2, 6, dtype=torch.float64))
    two.enabled = False
    assert torch.equal(model.first(x), before)


@pytest.mark.parametrize("kind", KINDS)
def test_subspaces_are_some_directions_alone_and_compose(kind):
    model, x = toy(), torch.randn(2, 4, 6, dtype=torch.float64)
    before = model.first(x)
    config = AdapterConfig(
        kind, modules="first", rank=4, positions="all", subspaces={"a": [0, 1], "b": (2, 3)}
    )
    adapter = shaken(put_on(model, config))
    whole = model.first(x) - before
    with adapter.using(a=1):
        a = model.first(x) - before
    with adapter.using(b=1):
        b = model.first(x) - before
    with adapter.using(a=2, b=-1):
        both = model.first(x) - before
    torch.testing.assert_close(a + b, whole)
    torch.testing.assert_close(both, 2 * a - b)
    rows = adapter.layers[0]["first"].up.weight.detach()
    assert (a.reshape(-1, 6) @ torch.linalg.pinv(rows[:2]) @ rows[:2] - a.reshape(-1, 6)).abs().max() < 1e-9
    with pytest.raises(InputError, match="no subspace 'c'; it has: a, b"), adapter.using(c=1):
        pass


def test_dropout_of_the_delta_acts_in_training_alone():
    model, x = toy(), torch.randn(2, 40, 6, dtype=torch.float64)
    before = model.first(x)
    adapter = shaken(put_on(model, AdapterConfig("lobireft", modules="first", positions="all", dropout=0.5)))
    adapter.eval()
    whole = model.first(x) - before
    torch.manual_seed(0)
    adapter.train()
    delta = model.first(x) - before
    dropped = delta.abs() < 1e-12
    assert 0.4 < dropped.double().mean() < 0.6
    torch.testing.assert_close(delta[~dropped], 2 * whole[~dropped])


@pytest.mark.filterwarnings("error")
def test_lora_is_its_formula_beside_another():
    model, x = toy(), torch.randn(2, 4, 6, dtype=torch.float64)
    plain = model.first(x)
    weight, bias = model.first.weight.clone(), model.first.bias.clone()
    lora = shaken(put_on(model, AdapterConfig("lora", "low", ("first",), rank=2, alpha=6)))
    a, b = (lora.weights()[f"first.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(model.first(x), x @ (weight + 3 * b @ a).T + bias, check_dtype=False)
    second = shaken(put_on(model, AdapterConfig("lora", "other", ("first",), rank=1)), 5)
    c, d = (second.weights()[f"first.lora_{part}.weight"] for part in "AB")
    lora.scale = 0.5
    torch.testing.assert_close(model.first(x), x @ (weight + 1.5 * b @ a + d @ c).T + bias)
    lora.detach(model)
    torch.testing.assert_close(model.first(x), x @ (weight + d @ c).T + bias)
    second.detach(model)
    assert type(model.first) is nn.Linear
    assert not hasattr(model, "peft_config")
    assert torch.equal(model.first(x), plain)


def test_lora_changes_the_named_layer_and_no_other_whose_path_ends_alike():
    model = toy()
    model.second.first = nn.Linear(6, 6).double()
    names = set(model.state_dict())
    lora = put_on(model, AdapterConfig("lora", "low", ("first",), rank=2))
    assert type(model.second.first) is nn.Linear
    lora.detach(model)
    assert set(model.state_dict()) == names


def test_lora_is_float32_on_half_precision_and_takes_no_name_that_peft_cannot():
    model = toy().bfloat16()
    lora = put_on(model, AdapterConfig("lora", "low", ("first",), rank=2))
    assert {value.dtype for value in lora.learned()} == {torch.float32}
    shaken(lora)
    assert model.first(torch.randn(2, 4, 6, dtype=torch.bfloat16)).dtype == torch.bfloat16
    with pytest.raises(InputError, match="'train': peft takes no such name"):
        put_on(toy(), AdapterConfig("lora", "train", ("first",), rank=2))


def test_a_frozen_lora_stays_frozen_when_another_is_taken_off():
    model = toy()
    kept, other = (put_on(model, AdapterConfig("lora", name, ("first",), rank=2)) for name in ("a", "b"))
    other.let_learn()
    other.detach(model)
    assert not any(value.requires_grad for value in kept.learned())


def test_dropout_of_lora_acts_in_training_alone():
    model, x = toy().eval(), torch.randn(2, 4, 6, dtype=torch.float64)
    lora = shaken(put_on(model, AdapterConfig("lora", "low", ("first",), rank=2, dropout=0.5)))
    assert torch.equal(model.first(x), model.first(x))
    lora.train()
    assert not torch.equal(model.first(x), model.first(x))


def test_what_learns_is_the_same_after_the_model_was_saved_without_it():
    scorer = small_scorer("ImageReward")
    names = set(scorer.state_dict())
    made = [AdapterConfig(kind, kind, ("text",), rank=1) for kind in ("lora", "loreft")]
    adapters = [scorer.add_adapter(each) for each in made]
    for each in adapters:
        each.let_learn()
        shaken(each)
    learned, digests = [each.learned() for each in adapters], [each.digest() for each in adapters]
    score = scorer.score("a", pictures(1)[0])
    with scorer.adapters.taken_off(scorer):
        assert {name for name in scorer.state_dict() if not name.startswith("adapters.")} == names
    for each, before, digest in zip(adapters, learned, digests):
        assert all(now is old for now, old in zip(each.learned(), before, strict=True))
        assert all(value.requires_grad for value in each.learned())
        assert each.digest() == digest
    assert scorer.score("a", pictures(1)[0]) == score


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"kind": "loraft"}, "did you mean 'loreft'.*expected one of"),
        ({"kind": "LoReFT"}, "kind='LoReFT': did you mean 'loreft'"),
        ({"name": "my taste"}, "name='my taste': expected letters"),
        ({"name": "../x"}, "name="),
        ({"rank": 0}, "rank=0: expected a whole number of at least 1"),
        ({"rank": 7}, "rank=7: first has a width of 6; expected at most that"),
        ({"modules": ["frist"]}, "no module 'frist'; nearest: first"),
        ({"modules": [""]}, "no module ''"),
        ({"modules": ["*.nothing"]}, r"no module '\*.nothing'"),
        ({"modules": 3}, "modules=3: expected a list of paths"),
        ({"modules": []}, "modules: Toy has no default"),
        ({"modules": ["third"]}, "the width of third cannot be seen; say width="),
        (
            {"modules": ["second"]},
            "second is a Module that no forward pass calls.*nearest that one calls: second.norm",
        ),
        ({"positions": "f1,l1"}, "positions='f1,l1': expected"),
        ({"activation": "rleu"}, "activation='rleu': did you mean 'relu'"),
        ({"dropout": 1.0}, "dropout=1.0: expected a number in"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"bias": 1}, "bias=1: expected true or false"),
        ({"subspaces": {"a": [9]}}, r"subspaces.a=9: expected a whole number in 0..3"),
        ({"subspaces": {"a": 3}}, "subspaces"),
        ({"subspaces": [1]}, "subspaces=.*expected a table"),
        ({"kind": "lora", "modules": ["second.norm"]}, "second.norm is a LayerNorm; LoRA changes linear"),
        ({"kind": "lora", "rank": 9}, "rank=9: first has a width of 6"),
    ],
)
def test_wrong_settings_are_named_with_what_was_expected(settings, message):
    model = toy()
    with pytest.raises(InputError, match=message):
        put_on(model, AdapterConfig(**{"kind": "loreft", "modules": ["first"], **settings}))
    assert type(model.first) is nn.Linear
    assert not model.first._forward_hooks


def test_outputs_that_are_no_states_of_tokens_are_refused():
    model = toy()
    put_on(model, AdapterConfig("loreft", modules=("first",)))
    message = r"the output of first is \(2, 5, 6\) where the prompts' tokens are"
    with pytest.raises(InputError, match=message), token_mask(torch.ones(2, 3)):
        model.first(torch.zeros(2, 5, 6, dtype=torch.float64))
    with pytest.raises(InputError, match="the output of first is no tensor"):
        model.first(torch.zeros(6, dtype=torch.float64))


def test_damaged_files_are_refused_by_name(tmp_path):
    model = toy()
    adapter = put_on(model, AdapterConfig("loreft", "mine", ("first",)))
    where = adapter.save_pretrained(tmp_path / "mine")
    text = (where / "config.json").read_text()
    config, weights = read_adapter(where)
    assert config.base == "Toy"
    assert set(config.weights) == {"float32", "float16", "bfloat16"}
    name = next(iter(weights))
    for wrong, message in (
        ({**weights, name: weights[name][:1]}, "the weights do not fit the adapter 'mine'"),
        ({**weights, "more": torch.zeros(1)}, "more unexpected"),
        ({key: value for key, value in weights.items() if key != name}, "missing"),
        ({**weights, name: torch.full_like(weights[name], torch.nan)}, "not finite"),
    ):
        with pytest.raises(CheckpointError, match=message):
            put_on(toy(), config, wrong)
    for damaged, message in (
        ("{", "describes no adapter"),
        ("[1]", "describes no adapter"),
        (text.replace('"rank"', '"rnak"'), "did you mean 'rank'"),
        (json.dumps({"adapter": {"kind": "loreft", "rank": -1}}), "rank=-1"),
    ):
        (where / "config.json").write_text(damaged)
        with pytest.raises(CheckpointError, match=message):
            read_adapter(where)
    (where / "config.json").write_text(text)
    data = (where / "adapter.safetensors").read_bytes()
    (where / "adapter.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(CheckpointError, match="cannot be read: it is damaged or cut off"):
        read_adapter(where)
    (where / "adapter.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter\.safetensors is missing: expected an adapter's"):
        read_adapter(where)


def test_an_adapter_whose_model_is_gone_says_so_instead_of_saving_without_its_hash(tmp_path):
    adapter = put_on(toy(), AdapterConfig("loreft", "mine", ("first",)))
    with pytest.raises(InputError, match="the model that the adapter 'mine' is on is gone"):
        adapter.save_pretrained(tmp_path)
    model = toy()
    adapter.hosted_by(model)
    assert adapter.save_pretrained(tmp_path / "out").is_dir()


def test_a_copy_of_a_model_has_an_adapter_of_its_own():
    class Holder(nn.Module):
        def __init__(self):
            super().__init__()
            self.toy = toy()
            self.adapter = shaken(put_on(self.toy, AdapterConfig("loreft", modules=("first",))))

    holder, x = Holder(), torch.randn(2, 4, 6, dtype=torch.float64)
    twin = copy.deepcopy(holder)
    expected = holder.toy(x)
    holder.adapter.enabled = False
    assert torch.equal(twin.toy(x), expected)
    assert not torch.equal(holder.toy(x), expected)


def test_an_interrupted_save_leaves_the_previous_files(tmp_path, monkeypatch):
    adapter = put_on(model := toy(), AdapterConfig("loreft", modules=("first",)))
    where = adapter.save_pretrained(tmp_path / "a")
    before = {path.name: path.read_bytes() for path in where.iterdir()}
    shaken(adapter)

    def killed(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        save_adapter(adapter.described(), adapter.weights(), where)
    assert {path.name: path.read_bytes() for path in where.iterdir()} == before
    assert model is not None
