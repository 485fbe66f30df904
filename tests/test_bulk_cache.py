"""Image features on disk: equal scores without image passes, within the budget, valid for one tower only."""

import contextlib
import resource
import sqlite3
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CONFIGS, small_scorer
from test_bulk import read_lines, score, write_lines

import imagereward as RM
from imagereward.bulk.decoding.cache import FeatureCache, tower_of
from imagereward.bulk.decoding.loading import Loader
from imagereward.bulk.scoring import PartScorer
from imagereward.errors import InputError

GB = 0.05


def scores(rows: list[dict]) -> dict[str, list]:
    return {name: [row[name] for row in rows] for name in rows[0] if name.startswith("score:")}


@pytest.fixture
def passes(monkeypatch):
    """Images that went through a tower since the list was last emptied."""
    from imagereward.scoring.scorer import Scorer

    seen: list[int] = []
    encode_pixels = Scorer.encode_pixels

    def counted(self, batches):
        seen.append(len(batches[0]))
        return encode_pixels(self, batches)

    monkeypatch.setattr(Scorer, "encode_pixels", counted)
    return seen


KINDS = ("ImageReward", "CLIP", "Aesthetic", "HPS", "BLIP")


def test_the_second_pass_has_equal_scores_and_no_image_pass_and_no_decoding(
    table, models, passes, monkeypatch
):
    _, plain = score(table, models, *KINDS, out="plain.parquet")
    options = {"cache": table / "cache", "cache_budget": GB}
    _, first = score(table, models, *KINDS, out="a.parquet", **options)
    for name, values in scores(plain).items():
        np.testing.assert_allclose(scores(first)[name], values, atol=1e-6)
    passes.clear()
    monkeypatch.setattr("imagereward.bulk.decoding.loading.read_image", None)
    _, second = score(table, models, *KINDS, out="b.parquet", **options)
    assert passes == []
    assert second == first


def test_new_prompts_cost_no_image_pass(table, models, passes):
    options = {"cache": table / "cache", "cache_budget": GB}
    score(table, models, out="a.parquet", **options)
    records = read_lines(table / "table.jsonl")
    write_lines(table / "new.jsonl", [{**record, "prompt": "new " + record["prompt"]} for record in records])
    passes.clear()
    _, rows = score(table, models, source="new.jsonl", out="b.parquet", **options)
    assert passes == []
    _, plain = score(table, models, source="new.jsonl", out="c.parquet")
    np.testing.assert_allclose(
        scores(rows)["score:ImageReward"], scores(plain)["score:ImageReward"], atol=1e-6
    )


def test_a_new_head_on_the_same_tower_costs_no_image_pass(table, models, passes, tmp_path):
    options = {"cache": table / "cache", "cache_budget": GB}
    score(table, models, out="a.parquet", **options)
    scorer = RM.load(models["ImageReward"], "cpu").float()
    for parameter in scorer.mlp.parameters():
        parameter.data = parameter.data * 2
    tuned = {"ImageReward": str(scorer.save_pretrained(tmp_path / "tuned"))}
    passes.clear()
    _, rows = score(table, tuned, out="b.parquet", **options)
    assert passes == []
    _, plain = score(table, tuned, out="c.parquet")
    np.testing.assert_allclose(scores(rows)["score:tuned"], scores(plain)["score:tuned"], rtol=1e-5)


def test_towers_pixels_and_dtypes_are_kept_apart():
    scorer = small_scorer("CLIP", seed=1)
    base = tower_of(scorer)
    assert tower_of(small_scorer("CLIP", seed=1)) == base
    assert tower_of(small_scorer("Aesthetic", seed=2)) != base
    assert tower_of(small_scorer("CLIP", seed=1, dtype="float64")) != base
    hps = small_scorer("HPS", seed=1)
    hps.load_state_dict(scorer.state_dict())
    assert tower_of(hps) != base
    aesthetic = small_scorer("Aesthetic", seed=1)
    aesthetic.clip_model.load_state_dict(scorer.clip_model.state_dict())
    assert tower_of(aesthetic) == base
    other = replace(scorer.config, architecture={**scorer.config.architecture, "quick_gelu": False})
    scorer.config = other  # the same weights, in another network
    assert tower_of(scorer) != base


@pytest.mark.parametrize("kind", CONFIGS)
def test_image_features_depend_on_the_named_weights_alone(kind):
    scorer = small_scorer(kind)
    pixels = torch.rand(1, 3, 32, 32)
    before = scorer.encode_pixels([pixels])
    for name, parameter in scorer.named_parameters():
        if not name.startswith(scorer.image_prefixes):
            parameter.data.fill_(float("nan"))
    assert torch.equal(scorer.encode_pixels([pixels]), before)


def test_a_resumed_run_with_a_cache_ends_with_the_identical_file(table, models, monkeypatch):
    from test_bulk_resume import begun

    score(table, models, out="whole.parquet", cache=table / "one", cache_budget=GB)
    options = {"cache": table / "two", "cache_budget": GB}
    begun(table, models, monkeypatch, **options)
    score(table, models, **options)
    assert (table / "out.parquet").read_bytes() == (table / "whole.parquet").read_bytes()


def test_the_cache_stays_within_its_budget_and_keeps_the_newest(tmp_path):
    budget = 2 * 2**20
    store = FeatureCache(tmp_path, budget)
    for start in range(0, 100, 10):
        for index in range(start, start + 10):
            store.put(b"tower", str(index).encode(), torch.full((25_000,), float(index)))
        store.commit()
        store.get(b"tower", b"0")  # used in every commit, so it stays
        assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= budget
    kept = [index for index in range(100) if store.get(b"tower", str(index).encode()) is not None]
    assert 15 <= len(kept) <= 20
    assert kept == [0, *range(101 - len(kept), 100)]
    found = store.get(b"tower", b"99")
    assert found is not None
    assert found.tolist() == [99.0] * 25_000


def test_a_smaller_budget_shrinks_the_file(tmp_path):
    store = FeatureCache(tmp_path, 8 * 2**20)
    for index in range(60):
        store.put(b"tower", str(index).encode(), torch.rand(25_000))
    store.commit()
    store.file.close()
    assert (tmp_path / "features.sqlite").stat().st_size > 4 * 2**20
    store = FeatureCache(tmp_path, 2 * 2**20)
    assert (tmp_path / "features.sqlite").stat().st_size <= 2 * 2**20
    assert store.get(b"tower", b"59") is not None


def test_more_than_the_budget_in_one_part_keeps_what_fits(tmp_path):
    store = FeatureCache(tmp_path, 2**20)
    for index in range(40):
        store.put(b"tower", str(index).encode(), torch.rand(25_000))
    store.commit()
    assert (tmp_path / "features.sqlite").stat().st_size <= 2**20
    assert store.get(b"tower", b"0") is not None


def test_features_that_went_while_their_image_was_on_its_way_are_computed(table, models, monkeypatch):
    options = {"cache": table / "cache", "cache_budget": GB}
    _, first = score(table, models, out="a.parquet", **options)
    load = Loader.load

    def load_then_lose(self, request, use_cache=True):
        loaded = load(self, request, use_cache)
        with sqlite3.connect(table / "cache/features.sqlite") as file:
            file.execute("DELETE FROM features")
        return loaded

    monkeypatch.setattr(Loader, "load", load_then_lose)
    _, second = score(table, models, out="b.parquet", **options)
    np.testing.assert_allclose(
        scores(second)["score:ImageReward"], scores(first)["score:ImageReward"], atol=1e-6
    )


def test_corrupt_images_are_errors_with_a_cache_as_well(table, models):
    (table / "images/3.png").write_bytes(b"junk")
    (table / "images/4.png").unlink()
    _, plain = score(table, models, out="a.parquet")
    for out in ("b.parquet", "c.parquet"):
        _, rows = score(table, models, out=out, cache=table / "cache", cache_budget=GB)
        assert [row["error"] for row in rows] == [row["error"] for row in plain]


def test_a_cache_that_is_none_is_refused_by_name(table, models):
    (table / "cache").mkdir()
    (table / "cache/features.sqlite").write_text("not SQLite, but long enough to look at" * 100)
    with pytest.raises(InputError, match=r"features\.sqlite cannot be used"):
        score(table, models, cache=table / "cache", cache_budget=GB)
    with pytest.raises(InputError, match="at least"):
        score(table, models, cache=table / "other", cache_budget=1e-9, overwrite=True)


ANOTHER_BYTE = "CASE substr(value, 201, 1) WHEN x'00' THEN x'01' ELSE x'00' END"
DAMAGE = {
    "a byte": f"CAST(substr(value, 1, 200) || {ANOTHER_BYTE} || substr(value, 202) AS BLOB)",
    "a byte and the type": f"substr(value, 1, 200) || {ANOTHER_BYTE} || substr(value, 202)",
    "its end": "substr(value, 1, length(value) - 100)",
    "its beginning": "substr(value, 9)",
    "all of it": "x''",
    "all but zeros": "x'00000000'",
    "its type": "'text'",
    "nothing there": "NULL",
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_value_is_computed_again(table, models, passes, damage):
    options = {"cache": table / "cache", "cache_budget": GB}
    _, first = score(table, models, out="a.parquet", **options)
    with contextlib.closing(sqlite3.connect(table / "cache/features.sqlite")) as file, file:
        keys = [key for (key,) in file.execute("SELECT key FROM features ORDER BY key")]
        marks = [(key,) for key in keys[::2]]
        file.executemany(f"UPDATE features SET value = {damage} WHERE key = ?", marks)
    passes.clear()
    _, second = score(table, models, out="b.parquet", **options)
    np.testing.assert_allclose(
        scores(second)["score:ImageReward"], scores(first)["score:ImageReward"], atol=1e-6
    )
    assert sum(passes) == len(marks)
    passes.clear()
    score(table, models, out="c.parquet", **options)
    assert passes == []  # what was computed again was kept


def test_a_place_that_takes_no_more_is_an_error_that_resumes(table, models):
    _, plain = score(table, models, out="plain.parquet")
    options = {"cache": table / "cache", "cache_budget": GB, "part_rows": 4}
    FeatureCache(table / "cache", int(GB * 1e9)).file.close()
    size = (table / "cache/features.sqlite").stat().st_size // 2
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        with pytest.raises(InputError, match=r"features\.sqlite cannot be used: .*(full|I/O)"):
            score(table, models, **options)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    _, rows = score(table, models, **options)
    np.testing.assert_allclose(
        scores(rows)["score:ImageReward"], scores(plain)["score:ImageReward"], atol=1e-6
    )


def test_a_cache_that_may_only_be_read_is_an_error(table, models):
    score(table, models, out="a.parquet", cache=table / "cache", cache_budget=GB)
    with contextlib.closing(sqlite3.connect(table / "cache/features.sqlite")) as file:
        file.execute(
            "CREATE TRIGGER readonly BEFORE UPDATE ON features BEGIN SELECT RAISE(FAIL, 'read-only'); END"
        )
    with pytest.raises(InputError, match=r"features\.sqlite cannot be used: read-only"):
        score(table, models, out="b.parquet", cache=table / "cache", cache_budget=GB)


def test_several_may_use_one_cache_at_once(tmp_path):
    stores = [FeatureCache(tmp_path, 2**21) for _ in range(2)]
    for place, store in enumerate(stores):
        store.put(b"tower", bytes([place]), torch.tensor([float(place)]))
    for store in stores:
        store.commit()
    assert [[store.get(b"tower", bytes([place])).item() for place in range(2)] for store in stores] == [
        [0, 1]
    ] * 2
    assert bytes([1]) in stores[0].reader([b"tower"])
    assert bytes([1]) not in stores[0].reader([b"tower", b"another"])


def test_an_image_that_vanishes_with_its_cached_features_is_an_error_of_its_rows_alone(
    table, models, monkeypatch
):
    options = {"cache": table / "cache", "cache_budget": GB, "workers": 0}
    _, first = score(table, models, out="a.parquet", **options)
    lost, call = "images/4.png", PartScorer.__call__

    def vanishing(self, *arguments):
        """Between loading and scoring another process empties the cache, and somebody removes a file."""
        with contextlib.closing(sqlite3.connect(table / "cache/features.sqlite")) as file, file:
            file.execute("DELETE FROM features")
        (table / lost).unlink(missing_ok=True)
        return call(self, *arguments)

    monkeypatch.setattr(PartScorer, "__call__", vanishing)
    _, second = score(table, models, out="b.parquet", **options)
    assert [row["error"] is not None for row in second] == [row["image"].endswith(lost) for row in first]
    assert any(row["image"].endswith(lost) for row in first)
    for before, after in zip(first, second, strict=True):
        if after["error"] is None:
            assert after["score:ImageReward"] == pytest.approx(before["score:ImageReward"], abs=1e-6)
        else:
            assert "does not exist" in after["error"]
            assert after["score:ImageReward"] is None
