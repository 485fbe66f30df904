"""What a personal adapter's figures rest on: what is held out, ties, few choices, and what else may learn."""

import csv
import itertools
import json
import warnings

import numpy as np
import pytest
import torch
from conftest import small_scorer
from personal_choices import pairs, picture, rankings, ratings, written
from PIL import Image
from test_cli import run
from test_personal import QUICK, by_prompt, choice

import imagereward as RM
from imagereward.config import AdapterConfig
from imagereward.errors import InputError, PositionsClampedWarning
from imagereward.tuning import run_recipe
from imagereward.tuning.personal import validation
from imagereward.tuning.personal.choice import Choice, image_key
from imagereward.tuning.personal.choices import read_choices
from imagereward.tuning.personal.folds import groups_of
from imagereward.tuning.personal.summary import measured


def pair(prompt: str, better: str, worse: str) -> Choice:
    return Choice("here", prompt, (f"{better}.png", f"{worse}.png"), (1, 2))


def test_choices_that_share_an_image_or_a_prompt_are_held_out_together():
    many = [pair(f"prompt {index}", f"a{index}", f"b{index}") for index in range(9)]
    # The last two prompts share an image, also if its path is written otherwise.
    shared = [*many, pair("another", "./b8", "c")]
    assert groups_of(shared) == ([*range(9), 8], "prompts")
    # Of a few prompts, what is connected by images: here 0-1-2, 3-4 and two alone.
    chain = ["ab", "bc", "cd", "ef", "gf", "hi", "jk"]
    few = [pair("one prompt", *each) for each in chain]
    assert groups_of(few) == ([0, 0, 0, 1, 1, 2, 3], "images")
    # 30 images of one prompt, each compared with the next: nothing but single choices is left.
    ring = [pair("one prompt", str(index), str((index + 1) % 30)) for index in range(30)]
    assert groups_of(ring) == (list(range(30)), "single choices")
    # Nor where most choices are in one group, which a training could not do without.
    lopsided = [*(pair("one", "hub", f"x{index}") for index in range(9)), *few[3:]]
    assert groups_of(lopsided).unit == "single choices"


def test_equal_images_are_one_image_whatever_object_holds_them():
    def opened(level: int, form: str):
        image = Image.new("RGB", (4, 4), (level, 0, 0))
        return {"image": image, "array": np.asarray(image), "tensor": torch.tensor(np.asarray(image))}[form]

    for form in ("image", "array", "tensor"):
        items = [
            Choice("", "a", (opened(a, form), opened(b, form)), (1, 2))
            for a, b in itertools.combinations(range(6), 2)
        ]
        assert groups_of(items).unit == "single choices"
    red, blue = (
        Image.new("RGB", (4, 4), colour).convert("P", palette=Image.Palette.ADAPTIVE)
        for colour in ("red", "blue")
    )
    assert red.tobytes() == blue.tobytes()  # places in two palettes
    assert image_key(red) != image_key(blue)


def test_recurring_images_are_no_evidence_for_new_ones_whatever_the_figures():
    items = [pair("one prompt", str(index), str((index + 1) % 30)) for index in range(30)]
    right, wrong = [[1.0, 0.0]] * 30, [[0.0, 1.0]] * 30
    found = measured("pairs", items, groups_of(items), wrong, right)
    assert found.gain[1] > 0.5
    assert not found.better
    assert "verdict: none about new images: images recur" in str(found)
    assert measured("pairs", items, by_prompt(30), wrong, right).better


def test_a_single_prompt_with_few_images_is_trained_and_says_what_it_is_no_evidence_for(tmp_path):
    rng = np.random.default_rng(3)
    images = [picture(index / 6, rng) for index in range(6)]
    records = [
        {"prompt": "a cat", "chosen": images[i], "rejected": images[j]} for i in range(6) for j in range(i)
    ]
    _, summary = RM.personalise(
        small_scorer("ImageReward"), records, output=tmp_path / "out", folds=2, epochs=1
    )
    assert not summary.better
    assert summary.recurring
    assert summary.how == "cross-validation in 2 parts by single choices"
    assert "nothing about new ones" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize("kind", ["pairs", "ratings", "labels"])
def test_breaking_ties_at_random_is_no_gain(kind):
    rng = np.random.default_rng(0)
    gains = []
    for _ in range(25):
        if kind == "pairs":
            items, shape = [choice(str(index)) for index in range(40)], (40, 2)
        else:
            values = rng.permutation(40) % 2 if kind == "labels" else rng.permutation(40)
            items, shape = (
                [choice(str(index), (), float(value)) for index, value in enumerate(values)],
                (40, 1),
            )
        found = measured(kind, items, by_prompt(40), np.zeros(shape), rng.normal(size=shape))
        assert found.base[0] == (0 if kind == "ratings" else 0.5)
        gains.append(found.gain[0])
    assert abs(np.mean(gains)) < 0.06


@pytest.mark.parametrize("kind", ["pairs", "labels", "ratings"])
def test_a_handful_that_all_agree_still_has_an_interval(kind):
    values = {"labels": (1.0, 0.0, 1.0, 0.0), "ratings": (4.0, 1.0, 3.0, 2.0)}.get(kind)
    items = [choice(str(i), *((), values[i]) if values else ()) for i in range(4)]
    right = [[value] for value in values] if values else [[1.0, 0.0]] * 4
    found = measured(kind, items, by_prompt(4), [[-v for v in row] for row in right], right)
    assert found.adapted[0] == 1
    assert found.adapted[1] < 0.9
    assert found.gain[1] < found.gain[0] - 0.1
    assert not found.better


def test_the_held_out_share_that_selects_the_epoch_is_not_the_one_that_measures(monkeypatch):
    seen, real = {}, validation.scores_now

    def watched(scorer, choices, places, store):
        seen["measured"] = {item.prompt for item in choices.items}
        return real(scorer, choices, places, store)

    fit = validation.fit

    def fitted(learner, train, config, directory, valid=None, **options):
        seen["learned"], seen["selecting"] = ({each.prompt for each in part.items} for part in (train, valid))
        return fit(learner, train, config, directory, valid, **options)

    monkeypatch.setattr(validation, "scores_now", watched)
    monkeypatch.setattr(validation, "fit", fitted)
    scorer = small_scorer("ImageReward")
    records = pairs(12)
    _, summary = RM.personalise(scorer, records, folds=0, held_out=0.5, epochs=2)
    assert [len(seen[name]) for name in ("learned", "selecting", "measured")] == [6, 3, 3]
    assert set.union(*seen.values()) == {each["prompt"] for each in records}
    assert summary.pairs == 3
    assert summary.how == ("by prompts, 3 choices held out that select the epoch, and 3 others that measure")
    right = [
        np.diff(scorer.score(each["prompt"], [each["rejected"], each["chosen"]]))[0] > 0
        for each in records
        if each["prompt"] in seen["measured"]
    ]
    assert summary.adapted[0] == pytest.approx(np.mean(right))


@pytest.mark.parametrize("kind", ["loreft", "lora"])
def test_nothing_but_the_new_adapter_learns(kind):
    scorer = small_scorer("ImageReward")
    other = scorer.add_adapter(AdapterConfig("direft", "other"))
    other.let_learn()
    scorer.mlp.requires_grad_(True)
    before = {name: value.clone() for name, value in scorer.state_dict().items()}
    learning = {name for name, value in scorer.named_parameters() if value.requires_grad}
    RM.personalise(scorer, rankings(8), kind=kind, learning_rate=0.1, weight_decay=0.1, **QUICK)
    scorer.remove_adapter("mine")
    for name, value in scorer.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert {name for name, value in scorer.named_parameters() if value.requires_grad} == learning


def test_tokens_of_prompts_are_counted_only_where_the_adapter_changes_them():
    with warnings.catch_warnings():
        warnings.simplefilter("error", PositionsClampedWarning)
        _, summary = RM.personalise(small_scorer("Aesthetic"), rankings(8), **QUICK)
        assert summary.clamped == 0
        scorer = small_scorer("ImageReward")
        with pytest.raises(PositionsClampedWarning):
            RM.personalise(scorer, rankings(8), positions="f9+l9", **QUICK)
    assert not len(scorer.adapters)


def test_a_run_whose_choices_or_base_changed_is_not_resumed(tmp_path, models, monkeypatch):
    data, scorer = (
        written(pairs(12), tmp_path),
        small_scorer("ImageReward").save_pretrained(tmp_path / "base"),
    )
    given = [f"data={data}", f"scorer={scorer}", f"output={tmp_path / 'out'}", "device=cpu", "epochs=1"]

    def stopped(*args, **options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(validation, "fit", stopped)
        with pytest.raises(KeyboardInterrupt):
            run_recipe("imagereward/personal", [*given, "folds=2"])
    resumed = [*given, "folds=2", "resume=true"]
    lines = data.read_text()
    data.write_text(lines + lines.splitlines()[0].replace('"even"', '"odd"') + "\n")
    message = (
        r"out cannot be resumed: data=.*other choices or their images.*another output= .*or delete .*out"
    )
    with pytest.raises(InputError, match=message):
        run_recipe("imagereward/personal", resumed)
    data.write_text(lines)
    image = tmp_path / "images/0-chosen.png"
    kept = image.read_bytes()
    picture(0.5, np.random.default_rng(9)).save(image)
    with pytest.raises(InputError, match=message):
        run_recipe("imagereward/personal", resumed)
    image.write_bytes(kept)
    other = small_scorer("ImageReward")
    other.mlp.requires_grad_(False)
    next(other.mlp.parameters()).add_(1)
    other.save_pretrained(scorer)
    with pytest.raises(InputError, match=r"cannot be resumed: scorer=.*other weights"):
        run_recipe("imagereward/personal", resumed)
    small_scorer("ImageReward").save_pretrained(scorer)
    assert run_recipe("imagereward/personal", resumed).config.name == "out"


@pytest.mark.parametrize("settings", [{"folds": -1}, {"folds": 1}, {"folds": 2.0}, {"held_out": 1.5}])
def test_folds_and_shares_out_of_range_are_named(settings, tmp_path):
    ((name, value),) = settings.items()
    scorer = small_scorer("ImageReward")
    with pytest.raises(InputError, match=f"{name}={value}: expected") as raised:
        RM.personalise(scorer, rankings(6), epochs=1, **settings)
    assert str(raised.value).count(f"{name}=") == 1
    assert not len(scorer.adapters)
    with pytest.raises(InputError, match=f"{name}={value}: "):
        run_recipe("imagereward/personal", [f"{name}={value}", f"output={tmp_path / 'out'}"])


@pytest.mark.parametrize(("folds", "trainings"), [(2, 3), (0, 1)])
def test_one_bar_goes_over_all_trainings(folds, trainings, monkeypatch):
    bars = []

    class Bar(validation.tqdm):
        def __init__(self, *args, **options):
            super().__init__(*args, **{**options, "disable": False, "delay": 99})
            bars.append((self, self.total))

    monkeypatch.setattr(validation, "tqdm", Bar)
    _, summary = RM.personalise(small_scorer("ImageReward"), rankings(8), folds=folds, epochs=2)
    ((bar, planned),) = bars
    assert planned == trainings * 2
    assert bar.n == bar.total == (4 + summary.epochs if folds else 2)


def test_subspaces_are_those_of_the_adapter_that_learns(tmp_path):
    scorer = small_scorer("ImageReward")
    named = {"red": [0, 1], "calm": [2, 3]}
    adapter, _ = RM.personalise(scorer, rankings(8), subspaces=named, output=tmp_path / "out", **QUICK)
    assert adapter.config.subspaces == {"red": (0, 1), "calm": (2, 3)}
    image = picture(0.5, np.random.default_rng(1))
    both = scorer.score("a cat", image)
    with adapter.using(red=1.0):
        assert scorer.score("a cat", image) != both
    assert json.loads((tmp_path / "out/config.json").read_text())["adapter"]["subspaces"] == named
    for settings, message in (
        ({"subspaces": {"red": [4]}}, r"subspaces\.red=4: expected a whole number in 0\.\.3"),
        ({"subspaces": {"red": ["a"]}}, r"subspaces\.red\.0='a'"),
        ({"subspaces": named, "kind": "lora"}, "subspaces divide the directions of ReFT"),
    ):
        with pytest.raises(InputError, match=message):
            RM.personalise(scorer, rankings(8), name="other", **settings, **QUICK)


def test_published_layouts_and_tables_of_text_keep_subsets_and_margins(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        picture(0.5, rng).save(tmp_path / f"{name}.png")
    record = {"prompt": "x", "image_path": ["a.png", "b.png"], "human_preference": [0, 1]}
    extra = {"subset": "photos", "margin": 0.5}
    (tmp_path / "train.json").write_text(json.dumps([{**record, **extra}, record]))
    first, second = read_choices(tmp_path / "train.json").items
    assert (first.decided, first.subset, first.margin) == ([(1, 0)], "photos", 0.5)
    assert (second.subset, second.margin) == ("", 0)
    with (tmp_path / "table.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["prompt", "generations", "ranking", "subset", "margin"])
        table.writerow(["x", '["a.png", "b.png"]', "[2, 1]", "photos", "0.5"])
    assert read_choices(tmp_path / "table.csv").items[0].decided == [(1, 0)]
    (tmp_path / "bad.csv").write_text("prompt,images,ranking\nx,a.png b.png,2 1\n")
    with pytest.raises(InputError, match=r"bad\.csv.*images: expected a list .* in a table of text as JSON"):
        read_choices(tmp_path / "bad.csv")
    alone = [
        {"prompt_id": 1, "prompt": "x", "image_path": f"{name}.png", "rank": rank, "subset": "photos"}
        for rank, name in enumerate("ab")
    ]
    (tmp_path / "alone.jsonl").write_text("".join(json.dumps(each) + "\n" for each in alone))
    with pytest.raises(InputError, match="a record for each image, and a column subset or margin"):
        read_choices(tmp_path / "alone.jsonl")
    with pytest.raises(InputError, match=r"choices\[0\], margin: ratings have none"):
        read_choices([{**each, "margin": 1} for each in ratings(4)])
    image = picture(0.5, rng)
    with pytest.raises(InputError, match=r"choices\[0\]: images\[0\] and images\[2\] are the same image"):
        read_choices([{"prompt": "x", "images": [image, picture(0, rng), image], "ranking": [1, 2, 3]}])


def test_an_adapter_is_measured_on_further_choices(tmp_path):
    scorer = small_scorer("ImageReward")
    saved = scorer.save_pretrained(tmp_path / "base")
    RM.personalise(scorer, rankings(8), learning_rate=3e-2, output=tmp_path / "mine", **QUICK)
    records = pairs(30, seed=9)
    found = RM.evaluate(scorer, records)
    both = [(each["prompt"], [each["chosen"], each["rejected"]]) for each in records]
    on = np.mean([scorer.score(*each)[0] > scorer.score(*each)[1] for each in both])
    with scorer.using_adapters():
        off = np.mean([scorer.score(*each)[0] > scorer.score(*each)[1] for each in both])
    assert (found.adapted[0], found.base[0]) == pytest.approx((on, off))
    assert found.gain[0] == pytest.approx(on - off)
    assert found.subsets.keys() == {"even", "odd"}
    assert found.unit == "prompts"
    assert RM.evaluate(scorer, ratings(20)).measure == "Spearman correlation with the ratings"
    data = written(records, tmp_path)
    how = (data, "--model", saved, "--adapter", tmp_path / "mine", "--device", "cpu")
    printed = json.loads(run("evaluate", *how, "--format", "json"))
    assert printed["adapted"] == pytest.approx(list(found.adapted), abs=1e-6)
    assert "pairs ranked as chosen: base " in run("evaluate", *how)
    rows = list(csv.DictReader(run("evaluate", *how, "--format", "csv").splitlines()))
    assert [row["subset"] for row in rows] == ["", "even", "odd"]
    with pytest.raises(InputError, match="has no adapter that could be compared with it"):
        RM.evaluate(small_scorer("ImageReward"), records)
