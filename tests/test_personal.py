"""Personal adapters: losses by hand, folds, verdicts, training on every kind of choices, bad input."""

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import small_scorer
from personal_choices import labels, pairs, picture, rankings, ratings, written

import imagereward as RM
from imagereward.config import AdapterConfig
from imagereward.errors import CheckpointError, InputError, PositionsClampedWarning
from imagereward.tuning import run_recipe
from imagereward.tuning.personal import validation
from imagereward.tuning.personal.choice import Choice
from imagereward.tuning.personal.choices import read_choices
from imagereward.tuning.personal.data import ImageStore, collate_comparisons, collate_values
from imagereward.tuning.personal.folds import Groups, best_epoch, groups_of, held_out, nested_epochs, split
from imagereward.tuning.personal.learner import prepared, scores_now
from imagereward.tuning.personal.losses import dpo_loss, label_loss, pairwise_loss, rating_loss
from imagereward.tuning.personal.summary import measured

QUICK = {"folds": 2, "epochs": 2, "batch_size": 8}


def log_sigmoid(x: float) -> float:
    return -math.log1p(math.exp(-x))


def test_the_pairwise_loss_is_bradley_terry_over_all_pairs_with_margins():
    scores = torch.tensor([[1.0, -0.5, 2.0], [0.3, 0.3, 0.0]])
    ranks = torch.tensor([[1, 2, 2], [2, 1, -100]])
    expected = -(log_sigmoid(1.5 - 0.25) + log_sigmoid(-1.0 - 0.25) + log_sigmoid(0.0)) / 3
    assert pairwise_loss(scores, ranks, torch.tensor([0.25, 0.0])).item() == pytest.approx(expected)
    none = pairwise_loss(scores[:1].requires_grad_(), torch.tensor([[1, 1, 1]]), torch.zeros(1))
    assert none.item() == 0.0


def test_the_dpo_loss_is_log_2_at_the_reference_and_counts_what_was_gained():
    scores, ranks, none = torch.tensor([[1.0, -0.5]]), torch.tensor([[2, 1]]), torch.zeros(1)
    assert dpo_loss(scores, scores, ranks, none, 3.0).item() == pytest.approx(math.log(2))
    moved = scores + torch.tensor([[0.1, 0.4]])
    assert dpo_loss(moved, scores, ranks, none, 3.0).item() == pytest.approx(-log_sigmoid(3 * 0.3))
    margin = torch.tensor([0.25])
    assert dpo_loss(moved, scores, ranks, margin, 3.0).item() == pytest.approx(-log_sigmoid(3 * 0.3 - 0.25))


def test_ratings_and_labels_are_squared_error_and_cross_entropy():
    scores = torch.tensor([0.5, -1.0])
    assert rating_loss(scores, torch.tensor([1.0, -1.0])).item() == pytest.approx(0.125)
    expected = -(log_sigmoid(0.5) + log_sigmoid(1.0)) / 2
    assert label_loss(scores, torch.tensor([1.0, 0.0])).item() == pytest.approx(expected)


def test_batches_keep_the_order_of_images_and_pad_ranks():
    item = {
        "prompt": "a",
        "places": (4, 2),
        "ranks": (2, 1),
        "margin": 0.5,
        "reference": (0.1, 0.2),
        "target": 0.0,
    }
    other = {**item, "prompt": "b", "places": (0, 1, 3), "ranks": (1, 1, 2), "reference": (1.0, 2.0, 3.0)}
    batch = collate_comparisons([item, other])
    assert batch["places"].tolist() == [4, 2, 0, 1, 3]
    assert batch["ranks"].tolist() == [[2, 1, -100], [1, 1, 2]]
    assert batch["reference"].tolist()[0][2] == 0
    assert batch["margins"].tolist() == [0.5, 0.5]
    values = collate_values([{**item, "target": 2.0}, other])
    assert values["places"].tolist() == [4, 0]
    assert values["targets"].tolist() == [2.0, 0.0]


def choice(prompt: str, ranks=(1, 2), value: float = math.nan, subset: str = "") -> Choice:
    images = tuple(f"{prompt}-{i}.png" for i in range(len(ranks) or 1))
    return Choice("here", prompt, images, tuple(ranks), value, 0.0, subset)


def test_folds_hold_out_every_choice_once_and_prompts_as_a_whole():
    items = [choice(f"prompt {index % 10}") for index in range(25)]
    groups, unit = groups_of(items)
    assert unit == "prompts"
    parts = split(groups, 5, 3)
    assert sorted(index for part in parts for index in part) == list(range(25))
    for part in parts:
        inside = {items[index].prompt for index in part}
        assert not inside & {items[i].prompt for i in range(25) if i not in part}
    assert parts == split(groups, 5, 3) != split(groups, 5, 4)
    assert len(split(groups, 99, 0)) == 10
    out = held_out(groups, 0.4, 0)
    assert [len({groups[index] for index in part}) for part in out] == [2, 2]
    assert not {groups[index] for index in out[0]} & {groups[index] for index in out[1]}
    with pytest.raises(InputError, match="3 choices that say something: expected at least 4"):
        groups_of([choice("same")] * 3)


def test_the_epoch_is_that_of_the_lowest_mean_loss_and_a_fold_does_not_choose_its_own():
    curves = [[0.7, 0.5, 0.6], [0.7, 0.6, 0.2], [0.7, 0.5]]
    # Means after epochs 1 and 2: 1.6 / 3, and (0.6 + 0.2 + 0.5) / 3.
    assert best_epoch(curves) == 2
    assert nested_epochs(curves) == [2, 1, 2]
    assert best_epoch([[0.1, 0.5, 0.4]]) == 2  # epoch 0 is the base, no training
    with pytest.raises(InputError, match="not finite"):
        best_epoch([[0.1, math.nan]])


def by_prompt(count: int) -> Groups:
    return Groups(list(range(count)), "prompts")


def test_agreement_and_its_gain_are_counted_over_pairs_and_groups():
    items = [
        choice("a", (1, 2, 2), subset="x"),
        choice("b", (2, 1)),
        choice("c", (1, 2)),
        choice("d", (1, 2)),
    ]
    base = [[0, 1, -1], [0, 1], [0, 0], [1, 0]]
    adapted = [[1, 0, -1], [0, 1], [1, 0], [0, 1]]
    found = measured("rankings", items, by_prompt(4), base, adapted)
    assert found.pairs == 5
    assert found.base[0] == pytest.approx(3.5 / 5)  # a tie of the scores is half right
    assert found.adapted[0] == pytest.approx(4 / 5)
    gains, pairs_ = np.array([1, 0, 0.5, -1]), np.array([2, 1, 1, 1])
    left = (gains.sum() - gains) / (pairs_.sum() - pairs_)
    values = [*(0.1 + 3 * (left.mean() - left)), -1, 1]  # a difference of shares is from -1 to 1
    error = np.std(values, ddof=1) / math.sqrt(6)
    assert found.gain[0] == pytest.approx(0.1)
    assert found.gain[1] == pytest.approx(np.mean(values) - 2.5705818366147395 * error)
    assert found.gain[2] == pytest.approx(min(1, np.mean(values) + 2.5705818366147395 * error))
    assert not found.better
    assert found.subsets["x"][0] == 2
    assert found.subsets["x"][1][0] == pytest.approx(0.5)


def test_the_verdict_on_random_scores_is_hardly_ever_better():
    rng, better = np.random.default_rng(0), 0
    for _ in range(400):
        items = [choice(str(index), tuple(rng.permutation(3) + 1)) for index in range(24)]
        base, adapted = rng.normal(size=(2, 24, 3))
        better += measured("rankings", items, by_prompt(24), base, adapted).better
    assert better <= 20  # 5 %


def test_ratings_are_measured_by_rank_correlation_and_labels_by_pairs():
    items = [choice(str(i), (), value) for i, value in enumerate((1.0, 2.0, 3.0, 4.0))]
    found = measured("ratings", items, by_prompt(4), [[4], [3], [2], [1]], [[1], [2], [4], [3]])
    assert found.base[0] == pytest.approx(-1)
    assert found.adapted[0] == pytest.approx(0.8)
    items = [choice(str(i), (), value) for i, value in enumerate((1.0, 0.0, 1.0, 0.0))]
    found = measured("labels", items, by_prompt(4), [[0], [1], [2], [3]], [[3], [1], [2], [2]])
    assert found.base[0] == pytest.approx(1 / 4)
    assert found.adapted[0] == pytest.approx(3.5 / 4)  # the last of the good and of the bad are level
    constant = measured("labels", items, by_prompt(4), [[2]] * 4, [[2]] * 4)
    assert constant.base[0] == constant.adapted[0] == 0.5


@pytest.mark.parametrize("kind", ["ImageReward", "CLIP"])
def test_the_base_is_scored_as_the_scorer_scores(kind):
    scorer, choices = small_scorer(kind), read_choices(rankings(3))
    store = ImageStore(scorer, choices)
    places = store.places(choices)
    found = scores_now(scorer, choices, places, store)
    for each, scores in zip(choices.items, found):
        assert scores == pytest.approx(scorer.score(each.prompt, list(each.images)), abs=1e-5)
    data, standard = prepared(choices, places, found)
    flat = np.concatenate(found)
    assert standard.mean == pytest.approx(flat.mean())
    assert data[0]["reference"][0] == pytest.approx((found[0][0] - flat.mean()) / flat.std(ddof=1), rel=1e-4)


def test_rankings_teach_a_taste_that_holds_on_other_images():
    scorer, other = small_scorer("ImageReward"), rankings(20, seed=9)
    adapter, summary = RM.personalise(scorer, rankings(40), folds=3, epochs=12, learning_rate=1e-2)

    def agreement() -> float:
        right = [
            np.argmax(scorer.score(each["prompt"], each["images"])) == each["ranking"].index(1)
            for each in other
        ]
        return float(np.mean(right))

    on = agreement()
    with scorer.using_adapters():
        off = agreement()
    assert on > off + 0.2
    assert summary.better
    assert summary.gain[1] > 0
    assert "verdict: better than the base" in str(summary)
    assert not any(value.requires_grad for value in adapter.learned())
    assert scorer.config.adapters[0].name == "mine"
    assert summary.parameters == sum(value.numel() for value in adapter.learned())


@pytest.mark.parametrize(
    ("records", "settings"),
    [
        (pairs(12), {"kind": "direft"}),
        (pairs(12), {"loss": "dpo", "kind": "lobireft"}),
        (ratings(16), {"kind": "noreft"}),
        (labels(16), {"kind": "lora"}),
        (rankings(9), {"kind": "consreft", "modules": ["text", "image"]}),
        (rankings(9), {"kind": "nodireft", "folds": 0, "dropout": 0.1, "shared": True}),
    ],
    ids=["pairs", "dpo", "ratings", "labels", "image side", "one held-out share"],
)
def test_every_kind_of_choices_and_adapter_trains_and_changes_scores(records, settings):
    scorer, image = small_scorer("ImageReward"), picture(0.5, np.random.default_rng(1))
    before = scorer.score("a cat", image)
    adapter, summary = RM.personalise(scorer, records, **{**QUICK, **settings})
    assert scorer.score("a cat", image) != before
    assert adapter.config.kind == settings.get("kind", "loreft")
    assert summary.choices == len(records)
    assert all(low <= value <= high for value, low, high in (summary.base, summary.adapted, summary.gain))
    scorer.remove_adapter("mine")
    assert scorer.score("a cat", image) == before


def test_a_clip_learns_on_both_sides():
    scorer = small_scorer("CLIP")
    adapter, _ = RM.personalise(scorer, rankings(8), **QUICK)
    assert any(".visual." in path for path in adapter.config.modules)
    assert any("clip_model.transformer." in path for path in adapter.config.modules)


def test_shuffled_choices_are_no_better_than_the_base():
    verdicts = []
    for seed in range(6):
        scorer = small_scorer("ImageReward")
        _, summary = RM.personalise(scorer, rankings(16, 2, seed, shuffled=True), **QUICK, learning_rate=1e-2)
        verdicts.append(summary.better)
    assert verdicts.count(True) <= 1
    assert "no better than the base" in str(summary)


def test_the_recipe_writes_an_adapter_that_load_takes_and_resumes_bit_for_bit(tmp_path, models, monkeypatch):
    data = written(pairs(12), tmp_path)
    changes = [f"data={data}", f"scorer={models['ImageReward']}", "folds=2", "epochs=2", "device=cpu"]
    whole = run_recipe("imagereward/personal", [*changes, f"output={tmp_path / 'whole'}"])
    expected = {name: value.clone() for name, value in whole.weights().items()}
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    assert names == {"README.md", "adapter.safetensors", "config.json", "run.json", "summary.json"}
    summary = json.loads((tmp_path / "whole/summary.json").read_text())
    assert summary["subsets"].keys() == {"even", "odd"}
    assert 0 < summary["bytes"] < 50_000
    again = RM.load(models["ImageReward"], "cpu", adapter=tmp_path / "whole")
    assert again.name == "ImageReward+whole"

    real, calls = validation.fit, []

    def stopped(*args, **options):
        calls.append(options)
        if len(calls) == 3:  # two folds are done; the last training is interrupted after its first epoch
            real(*args, **{**options, "epochs": 1})
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(validation, "fit", stopped)
    cut = [*changes, f"output={tmp_path / 'cut'}"]
    with pytest.raises(KeyboardInterrupt):
        run_recipe("imagereward/personal", cut)
    monkeypatch.setattr(
        validation, "fit", lambda *args, **options: calls.append(options) or real(*args, **options)
    )
    calls.clear()
    resumed = run_recipe("imagereward/personal", [*cut, "resume=true"])
    assert len(calls) == 1  # no fold again
    for name, value in resumed.weights().items():
        assert torch.equal(value, expected[name]), name


@pytest.mark.parametrize(("patience", "stopped_after"), [(5, 2), (1, 4)])
def test_a_held_out_share_is_measured_alike_after_a_resume(
    patience, stopped_after, tmp_path, models, monkeypatch
):
    data = written(pairs(12), tmp_path)
    changes = [
        *(f"data={data}", f"scorer={models['ImageReward']}", "folds=0", "epochs=4", "device=cpu"),
        *(f"patience={patience}", "learning_rate=0.3", "held_out=0.5"),
    ]
    whole = run_recipe("imagereward/personal", [*changes, f"output={tmp_path / 'whole'}"])
    expected = {name: value.clone() for name, value in whole.weights().items()}
    real = validation.fit

    def stopped(*args, **options):
        real(*args, **{**options, "epochs": stopped_after})
        raise KeyboardInterrupt

    monkeypatch.setattr(validation, "fit", stopped)
    cut = [*changes, f"output={tmp_path / 'again'}"]
    with pytest.raises(KeyboardInterrupt):
        run_recipe("imagereward/personal", cut)
    monkeypatch.setattr(validation, "fit", real)
    curve = tmp_path / "again/held_out.json"
    curve.rename(tmp_path / "aside.json")
    with pytest.raises(
        CheckpointError, match=r"checkpoint-\d+ cannot be resumed.*held_out\.json cannot be read"
    ):
        run_recipe("imagereward/personal", [*cut, "resume=true"])
    (tmp_path / "aside.json").rename(curve)
    resumed = run_recipe("imagereward/personal", [*cut, "resume=true"])
    found, summary = (
        json.loads((tmp_path / name / "summary.json").read_text()) for name in ("again", "whole")
    )
    assert {**found, "seconds": 0} == {**summary, "seconds": 0}
    for name, value in resumed.weights().items():
        assert torch.equal(value, expected[name]), name
    assert {path.name for path in (tmp_path / "again").iterdir()} == {
        *("README.md", "adapter.safetensors", "config.json", "run.json", "summary.json")
    }


def test_a_failed_training_leaves_the_scorer_as_it_was():
    scorer, image = small_scorer("ImageReward"), picture(0.5, np.random.default_rng(1))
    before = scorer.score("a cat", image)
    with pytest.raises(InputError, match="TrainingArguments refuses"):
        RM.personalise(scorer, rankings(6), trainer={"nonsense": 1}, **QUICK)
    assert not len(scorer.adapters)
    assert scorer.score("a cat", image) == before


def test_prompts_shorter_than_the_positions_are_counted():
    scorer, message = small_scorer("ImageReward"), r"positions='f9\+l9': 8 of 8 prompts of choices have fewer"
    with pytest.warns(PositionsClampedWarning, match=message):
        _, summary = RM.personalise(scorer, rankings(8), positions="f9+l9", **QUICK)
    assert summary.clamped == 8
    assert "8 prompts are shorter than the positions" in str(summary)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"prompt": "a", "chosen": "0.png"}, r"record 1 has no rejected; expected"),
        ({"prompt": "a", "chosen": "0.png", "rejected": "no.png"}, r"record 1, rejected \(.*no\.png\)"),
        ({"prompt": 3, "chosen": "0.png", "rejected": "1.png"}, r"record 1, prompt: "),
        (
            {"prompt": "a", "image": "0.png", "rating": 3},
            r"record 1 is one of ratings.*are pairs; expected one",
        ),
        (
            {"prompt": "a", "chosen": "0.png", "rejected": "1.png", "margin": -1},
            r"margin=-1: expected a finite",
        ),
        ({"prompt": "a", "chosen": "0.png", "rejected": "bad.png"}, r"record 1, rejected \(.*bad\.png\)"),
        (
            {"prompt": "a", "chosen": "0.png", "rejected": "./0.png"},
            r"record 1: chosen and rejected are the same image; expected different ones",
        ),
        ({"prompt": "a", "text": "b"}, r"record 1 has the fields prompt, text"),
    ],
)
def test_a_wrong_record_is_named_with_file_row_and_field(line, message, tmp_path):
    rng = np.random.default_rng(0)
    for index in range(2):
        picture(index / 2, rng).save(tmp_path / f"{index}.png")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    good = {"prompt": "a", "chosen": "0.png", "rejected": "1.png"}
    path = tmp_path / "choices.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(line) + "\n")
    with pytest.raises(InputError, match=message) as raised:
        read_choices(path)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([], "the list is empty"),
        ([3], r"choices\[0\]: found int"),
        ([{"prompt": "a", "images": ["x.png"], "ranking": [1]}], "images: expected a list of at least two"),
        ([{"prompt": "a", "images": ["x", "y"], "ranking": [1, -1]}], "ranking: expected a list of whole"),
        ([{"prompt": "a", "images": ["x", "y"], "ranking": [1]}], "2 images but 1 ranks in ranking"),
        ([{"prompt": "a", "image": "x", "rating": "much"}], "rating='much': expected a finite number"),
        ([{"prompt": "a", "image": "x", "good": "maybe"}], "good='maybe': expected true or false"),
    ],
)
def test_wrong_records_in_python_are_named_by_their_index(records, message):
    with pytest.raises(InputError, match=message):
        read_choices(records)


def test_choices_that_say_nothing_are_refused(tmp_path):
    ties = [{**each, "ranking": [1, 1, 1]} for each in rankings(5)]
    with pytest.raises(InputError, match="all 5 choices are ties: no image is preferred to another"):
        read_choices(ties)
    (tmp_path / "ties").mkdir()
    tied = written(ties, tmp_path / "ties")
    with pytest.raises(InputError, match=f"{re.escape(str(tied))}: all 5 choices are ties"):
        read_choices(tied)
    data = written(pairs(4), tmp_path)
    lines = [json.loads(line) for line in data.read_text().splitlines()]
    turned = [{**each, "chosen": each["rejected"], "rejected": each["chosen"]} for each in lines]
    data.write_text("".join(json.dumps(each) + "\n" for each in [*lines, *turned]))
    with pytest.raises(
        InputError, match="every choice is contradicted by another one of the same two images"
    ):
        read_choices(data)
    same = [{**each, "rating": 2} for each in ratings(5)]
    with pytest.raises(InputError, match="all 5 ratings are 2; expected several"):
        read_choices(same)
    with pytest.raises(InputError, match="3 choices that say something: expected at least 4"):
        RM.personalise(small_scorer("ImageReward"), rankings(3), **QUICK)


def test_settings_that_do_not_fit_are_refused(tmp_path):
    scorer = small_scorer("ImageReward")
    for settings, message in (
        ({"rnak": 2}, "rnak is no key; did you mean 'rank'"),
        ({"kind": "loraft"}, "kind='loraft'"),
        ({"rank": 64}, "rank=64: blip.text_encoder.encoder.layer.0 has a width of 32"),
        ({"modules": ["blip.text_encoder.encoder.layers.0"]}, "nearest: blip.text_encoder.encoder.layer.0"),
        ({"positions": "first"}, "positions='first': expected"),
    ):
        with pytest.raises(InputError, match=message):
            RM.personalise(scorer, rankings(6), **{**QUICK, **settings})
    with pytest.raises(InputError, match="loss='dpo' is for rankings and pairs; choices holds ratings"):
        RM.personalise(scorer, ratings(8), loss="dpo", **QUICK)
    assert not len(scorer.adapters)
    mine = scorer.add_adapter(AdapterConfig("loreft", "mine"))
    with pytest.raises(InputError, match="an adapter 'mine' is on the model already"):
        RM.personalise(scorer, rankings(6), **QUICK)
    assert scorer.adapters["mine"] is mine
    scorer.remove_adapter("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").write_text("")
    with pytest.raises(InputError, match="already holds something else"):
        RM.personalise(scorer, rankings(6), output=tmp_path / "full", **QUICK)


def test_another_gpu_than_the_first_is_refused_and_not_swapped(tmp_path, monkeypatch):
    message = r"device='cuda:1': .* first GPU .*CUDA_VISIBLE_DEVICES=1"
    given = [f"data={written(rankings(6), tmp_path)}", f"output={tmp_path / 'out'}", "device=cuda:1"]
    for recipe in ("imagereward/personal", "imagereward/preference"):
        with pytest.raises(InputError, match=message):
            run_recipe(recipe, given)
    assert not (tmp_path / "out").exists()
    scorer = small_scorer("ImageReward")
    monkeypatch.setattr(type(scorer), "device", torch.device("cuda:1"))
    with pytest.raises(InputError, match=message):
        RM.personalise(scorer, rankings(6), **QUICK)
    assert not len(scorer.adapters)


def test_rankings_in_published_layouts_are_read(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        picture(0.5, rng).save(tmp_path / f"{name}.png")
    records = [{"id": "1", "prompt": "x", "generations": ["a.png", "b.png"], "ranking": [2, 1]}]
    (tmp_path / "train.json").write_text(json.dumps(records))
    found = read_choices(tmp_path / "train.json")
    assert found.kind == "rankings"
    assert found.items[0].decided == [(1, 0)]
    (tmp_path / "odd.jsonl").write_text(json.dumps({"prompt": "x", "imagse": [], "rankng": []}) + "\n")
    with pytest.raises(InputError, match="has the columns prompt, imagse, rankng: did you mean"):
        read_choices(tmp_path / "odd.jsonl")
