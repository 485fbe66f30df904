"""Reports: the figures against plain oracles, the page in a real browser, and every bad input."""

import json
import math
import re
import shlex
from itertools import product
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import pictures
from scipy import stats
from typer.testing import CliRunner

from benchmarks.lib.browsing import assert_readable
from imagereward.bulk import score_table
from imagereward.cli import app
from imagereward.errors import InputError, OutputError
from imagereward.report import figures, selection, write_report
from imagereward.report.scores import read_scores
from imagereward.report.thumbnails import SIDE

ROOT = Path(__file__).parents[1]
GENERATORS = ["first", "second", "third"]
HOSTILE = '<script>document.title="gone"</script><img src=x onerror=alert(1)> "\'& \u202e'


def rows_for_samples(prompts: int = 12, seed: int = 0, folder: str = "") -> list[dict]:
    """Scores of two images a prompt by each of three generators, some equal, with some rows missing."""
    rng = np.random.default_rng(seed)
    rows = []
    for prompt, (place, generator), image in product(range(prompts), enumerate(GENERATORS), range(2)):
        if generator == "third" and prompt % 4 == 0:
            continue  # not every prompt is shared
        score = round(float(rng.normal(place)), 1)
        rows.append(
            {
                "row": len(rows),
                "prompt": f"prompt {prompt}",
                "image": f"{folder}{generator}/{prompt}-{image}.png",
                "truncated": prompt == 3,
                "generator": generator,
                "score:A": score,
                "score:B": float(np.float32(rng.normal() - 0.3 * score)),
                "error": None,
            }
        )
    return rows


def write(path, rows, fingerprint=None):
    table = pa.Table.from_pylist(rows)
    metadata = {b"imagereward": json.dumps(fingerprint)} if fingerprint else None
    pq.write_table(table.replace_schema_metadata(metadata), path)
    return path


@pytest.fixture
def scored(tmp_path):
    """A table with images on disk, one of which is missing, and a row with an error."""
    rows = rows_for_samples(folder=f"{tmp_path}/")
    rows[4] |= {"score:A": None, "score:B": None, "error": f"images[0] is damaged {HOSTILE}"}
    for row, picture in zip(rows, pictures(len(rows))):
        path = tmp_path / row["image"]
        path.parent.mkdir(exist_ok=True)
        picture.save(path)
    best = max((row for row in rows if row["score:A"] is not None), key=lambda row: row["score:A"])
    (tmp_path / best["image"]).unlink()
    rows[0]["prompt"] = rows[1]["prompt"] = HOSTILE
    return write(tmp_path / "scores.parquet", rows, {"dtype": "float32", "weights of A": ["abc"]})


def report(path, **options) -> str:
    out = path.with_name("report.html")
    write_report(path, out, **options)
    return out.read_text()


def test_win_shares_are_those_of_counting_every_pair(tmp_path):
    rows = rows_for_samples()
    scores = read_scores(write(tmp_path / "s.parquet", rows))
    judged = figures.judged_by(scores, 0)
    for a, b in product(range(3), repeat=2):
        shares = []
        for prompt in dict.fromkeys(row["prompt"] for row in rows):
            drawn = [
                [r["score:A"] for r in rows if (r["prompt"], r["generator"]) == (prompt, GENERATORS[g])]
                for g in (a, b)
            ]
            pairs = list(product(*drawn))
            if pairs:
                shares.append(sum((x > y) + (x == y) / 2 for x, y in pairs) / len(pairs))
        if a != b:
            assert judged.wins[a, b].mean == pytest.approx(np.mean(shares), abs=1e-12)
            assert judged.wins[a, b].count == len(shares)
            assert judged.wins[a, b].low <= judged.wins[a, b].mean <= judged.wins[a, b].high
    assert any(x["score:A"] == y["score:A"] for x, y in product(rows, rows) if x is not y)


def test_means_and_intervals_are_those_of_scipy_over_whole_prompts(tmp_path):
    rows = [row for row in rows_for_samples(40) if row["generator"] != "third"]
    scores = read_scores(write(tmp_path / "s.parquet", rows))
    for spread in figures.judged_by(scores, 0).spreads:
        own = [row for row in rows if row["generator"] == GENERATORS[spread.generator]]
        values = np.array([row["score:A"] for row in own])
        assert spread.mean.mean == pytest.approx(values.mean())
        assert spread.mean.count == len(values)
        assert sum(spread.histogram) == len(values)
        # Every prompt has two images here, so that whole prompts can be drawn as their means.
        prompt_means = values.reshape(-1, 2).mean(1)
        oracle = stats.ttest_1samp(prompt_means, 0).confidence_interval(0.95)
        assert (spread.mean.low, spread.mean.high) == pytest.approx((oracle.low, oracle.high))


def test_images_of_one_prompt_are_no_evidence_of_their_own(tmp_path):
    """Eight equal scores of each of ten prompts are ten values, not eighty."""
    values = np.random.default_rng(0).normal(size=10).round(3)
    rows = [
        {
            "row": at,
            "prompt": f"p{at // 8}",
            "image": f"{at}.png",
            "generator": "one",
            "score:A": float(value),
        }
        for at, value in enumerate(np.repeat(values, 8))
    ]
    (spread,) = figures.judged_by(read_scores(write(tmp_path / "s.parquet", rows)), 0).spreads
    oracle = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert (spread.mean.low, spread.mean.high) == pytest.approx((oracle.low, oracle.high), abs=1e-6)


def test_what_one_prompt_says_has_no_interval_and_may_be_chance(tmp_path):
    rows = [
        {"row": at, "prompt": f"p{at // 2}", "image": f"{at}.png", "generator": generator, "score:A": score}
        for at, (generator, score) in enumerate([("a", 1.0), ("b", 0.6), ("c", 0.1), ("c", 0.2)])
    ]
    page = report(write(tmp_path / "s.parquet", rows))
    assert "one prompt: no interval" in page
    assert "which may be chance" in page
    assert "nan" not in page.lower()


def table_of_wins(path, prompts: int, generators: int = 2, seed: int | None = None):
    """One image a prompt and generator; the first generator's are the best, or scores are drawn by `seed`."""
    rng = np.random.default_rng(seed)
    return write(
        path / "s.parquet",
        [
            {
                "prompt": f"p{prompt}",
                "image": f"{generator}/{prompt}.png",
                "generator": f"g{generator}",
                "score:A": float(-generator if seed is None else rng.normal()),
            }
            for prompt, generator in product(range(prompts), range(generators))
        ],
    )


@pytest.mark.parametrize(("prompts", "chance"), [(2, True), (15, True), (16, False)])
def test_winning_on_each_of_a_few_prompts_may_be_chance(tmp_path, prompts, chance):
    page = report(table_of_wins(tmp_path, prompts))
    assert f"100% of the time on the {prompts} prompts of both" in page
    assert ("which may be chance" in page) is chance
    assert "<small>100–100</small>" not in page
    assert ("<small>0–100</small>" in page) is (prompts == 2)


@pytest.mark.parametrize("generators", [2, 8])
def test_equal_generators_lead_by_chance_however_many_they_are(tmp_path, generators):
    """Of 30 tables without a difference, 5 % would say that the lead is not chance."""
    claims = 0
    for seed in range(30):
        judged = figures.judged_by(read_scores(table_of_wins(tmp_path, 20, generators, seed)), 0)
        first, second = judged.spreads[:2]
        claims += not judged.wins[first.generator, second.generator].may_be_chance
    assert claims <= 4


def test_agreement_is_that_of_scipy_and_disagreements_are_the_largest_differences(tmp_path):
    rows = rows_for_samples()
    scores = read_scores(write(tmp_path / "s.parquet", rows))
    (agreement,) = figures.agreements(scores)
    a, b = (np.array([row[f"score:{name}"] for row in rows]) for name in "AB")
    assert agreement.spearman == pytest.approx(stats.spearmanr(a, b).statistic)
    assert agreement.kendall == pytest.approx(stats.kendalltau(a, b).statistic)
    within = [
        stats.spearmanr(a[mask], b[mask]).statistic
        for mask in (np.array([row["prompt"] == p for row in rows]) for p in {r["prompt"] for r in rows})
    ]
    assert agreement.within[0] == pytest.approx(np.nanmean(within))
    (found,) = selection.disagreements(scores, [agreement])
    difference = stats.rankdata(a) - stats.rankdata(b)
    assert found.first_high[0] == int(difference.argmax())
    assert found.second_high[0] == int(difference.argmin())


def test_best_and_worst_are_the_extremes_and_never_the_same_image(tmp_path):
    rows = rows_for_samples()
    scores = read_scores(write(tmp_path / "s.parquet", rows))
    values = [row["score:A"] for row in rows]
    ends = selection.overall(scores, 0)
    assert values[ends.best[0]] == max(values)
    assert values[ends.worst[0]] == min(values)
    assert not set(ends.best) & set(ends.worst)
    equal = [{**row, "score:A": 1.0} for row in rows]
    for _, each in selection.prompts_to_show(read_scores(write(tmp_path / "e.parquet", equal)), 0, 4):
        assert each.best
        assert not set(each.best) & set(each.worst)
    shown = selection.prompts_to_show(scores, 0, 4)
    assert len(shown) == 4
    for prompt, each in shown:
        assert not set(each.best) & set(each.worst)
        own = [place for place, row in enumerate(rows) if row["prompt"] == scores.prompts[prompt]]
        assert values[each.best[0]] == max(values[place] for place in own)
        assert values[each.worst[0]] == min(values[place] for place in own)


def test_the_page_says_what_the_table_holds(scored):
    page = report(scored)
    text = re.sub(r"<[^>]+>", " ", page)
    assert "1 of 66 rows could not be scored" in text
    assert "weights of A" in text
    assert "abc" in text
    assert re.search(r"images not shown\s+1\b", text)
    assert re.search(r"prompt cut\s+6\b", text)
    assert "not found" in text


def test_rows_that_some_scorers_could_not_score_are_counted_apart(tmp_path):
    rows = rows_for_samples(4)
    rows[0] |= {"score:A": None, "error": "not finite: the score of A"}
    rows[1] |= {"score:A": None, "score:B": None, "error": "gone"}
    path = write(tmp_path / "s.parquet", rows)
    summary = write_report(path, tmp_path / "report.html")
    assert (summary.failed, summary.partly) == (1, 1)
    assert "2 with an error (1 of them with some scores)" in str(summary)
    text = re.sub(r"<[^>]+>", " ", (tmp_path / "report.html").read_text())
    assert f"1 of {len(rows)} rows could not be scored, and are in no figure above." in text
    assert f"1 of {len(rows)} rows lack the scores of some scorers, and are in the figures of the" in text
    assert re.search(r"without a score\s+1\b", text)
    assert re.search(r"partly scored\s+1\b", text)


def test_the_page_is_the_same_each_time_and_needs_nothing_else(scored):
    page = report(scored)
    assert report(scored, overwrite=True) == page
    assert not re.findall(r"https?://|<script|@import|url\(|<link", page)
    assert "default-src 'none'" in page


def test_what_score_table_writes_can_be_reported_in_every_format(table, models, tmp_path):
    pages = {}
    for suffix in ("parquet", "jsonl", "csv"):
        out = tmp_path / f"scores.{suffix}"
        inputs = (table / "table.jsonl", out, [models["ImageReward"], models["CLIP"]])
        score_table(*inputs, keep=["generator"], workers=0, progress=False)
        pages[suffix] = report(out, overwrite=True).replace(out.name, "NAME")
    assert pages["parquet"] == pages["jsonl"] == pages["csv"]
    assert "weights of" in pages["csv"]
    assert "data:image/webp" in pages["csv"]


def test_generators_are_a_column_or_else_folders(tmp_path):
    rows = rows_for_samples(folder="/data/run/")
    write(tmp_path / "column.parquet", rows)
    assert read_scores(tmp_path / "column.parquet").grouped_by == "the column generator"
    assert read_scores(tmp_path / "column.parquet", "truncated").generators == ["False", "True"]
    for row in rows:
        del row["generator"]
    folders = read_scores(write(tmp_path / "folders.parquet", rows))
    assert folders.generators == GENERATORS
    assert folders.grouped_by == "the folders of the images"


def test_relative_images_begin_where_is_said(tmp_path):
    rows = rows_for_samples(2)
    (tmp_path / "pictures/first").mkdir(parents=True)
    pictures(1)[0].save(tmp_path / "pictures" / rows[0]["image"])
    write(tmp_path / "s.parquet", rows[:2])
    assert "data:image/webp" in report(tmp_path / "s.parquet", images=tmp_path / "pictures")
    assert "data:image/webp" not in report(tmp_path / "s.parquet", overwrite=True)


@pytest.mark.parametrize(
    "change", ["one prompt", "one row", "no prompts", "no images", "equal scores", "gaps"]
)
def test_tables_that_lack_something_are_reported_without_it(tmp_path, change):
    rows = rows_for_samples()
    if change == "one prompt":
        rows = [{**row, "prompt": "the same"} for row in rows]
    elif change == "one row":
        rows = rows[:1]
    elif change in ("no prompts", "no images"):
        rows = [{k: v for k, v in row.items() if k != change[3:-1]} for row in rows]
    elif change == "equal scores":
        rows = [{**row, "score:A": 1.0, "score:B": -2.0} for row in rows]
    else:
        rows = [{**row, f"score:{'AB'[place % 2]}": None} for place, row in enumerate(rows)]
    page = report(write(tmp_path / "s.parquet", rows))
    assert "nan" not in re.sub(r"<style>.*?</style>", "", page, flags=re.DOTALL).lower()
    assert page.count('class="spreads"') == 2


def test_many_rows_and_generators_stay_within_bounds(tmp_path):
    count = 20_000
    rng = np.random.default_rng(0)
    columns = {
        "prompt": [f"prompt {i // 40}" for i in range(count)],
        "image": [f"g{i % 40}/{i}.png" for i in range(count)],
        "score:A": rng.normal(size=count),
    }
    pq.write_table(pa.table(columns), tmp_path / "s.parquet")
    page = report(tmp_path / "s.parquet", prompts=40)
    assert len(page) < 1e6
    assert "The 8 with most rows are shown, 32 are not" in page
    assert page.count("<figure>") <= 2 * selection.EXTREMES + 40 * 2 * selection.PROMPT_EXTREMES


def test_thumbnails_are_small_whatever_the_image(tmp_path):
    rows = rows_for_samples(1)[:2]
    noise = np.random.default_rng(0).integers(0, 255, (1500, 2000, 3), dtype=np.uint8)
    import PIL.Image

    (tmp_path / "first").mkdir()
    for row in rows:
        PIL.Image.fromarray(noise).save(tmp_path / row["image"])
    page = report(write(tmp_path / "s.parquet", rows), images=tmp_path)
    assert f'width="{SIDE}" height="{SIDE * 3 // 4}"' in page
    assert len(page) < 2 * 60_000


@pytest.mark.parametrize(
    ("rows", "options", "message"),
    [
        ([{"prompt": "a"}], {}, r"no scores: expected columns score:NAME.* it has prompt"),
        ([{"score:A": 1.0, "x": "a"}], {"generator": "y"}, r"no column 'y'; it has score:A, x"),
        ([{"score:A": 1.0}], {"by": "B"}, r"no scores by 'B'; it has those by A"),
        ([{"score:A": None, "error": "gone"}] * 2, {}, r"2 rows and no score, .* row 0 is: gone"),
        ([{"score:A": math.nan}], {}, r"1 rows and no score"),
        ([{"score:A": "high"}], {}, r"row 0, score:A: 'high' is no number"),
        ([{"score:A": 1.0}], {"prompts": 41}, r"prompts=41"),
    ],
)
def test_what_cannot_be_reported_is_refused_by_name(tmp_path, rows, options, message):
    with pytest.raises(InputError, match=message):
        report(write(tmp_path / "s.parquet", rows), **options)
    assert not (tmp_path / "report.html").exists()


def test_files_that_are_no_tables_are_refused(tmp_path):
    (tmp_path / "s.csv").write_text("prompt,score:A\n")
    with pytest.raises(InputError, match="0 rows and no score"):
        report(tmp_path / "s.csv")
    (tmp_path / "s.jsonl").write_text('{"score:A": 1}\n{"score:A": \n')
    with pytest.raises(InputError, match="row 1: the line is not JSON"):
        report(tmp_path / "s.jsonl")
    (tmp_path / "s.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(InputError, match="cannot be read as Parquet"):
        report(tmp_path / "s.parquet")
    with pytest.raises(InputError, match="does not exist"):
        report(tmp_path / "gone.parquet")


def test_nothing_is_overwritten_unless_asked(scored):
    out = scored.with_name("report.html")
    out.write_text("mine")
    with pytest.raises(OutputError, match="exists; pass --overwrite"):
        write_report(scored, out)
    assert out.read_text() == "mine"
    with pytest.raises(InputError, match=r"expected a name that ends in \.html"):
        write_report(scored, scored, overwrite=True)
    (scored.parent / "file").write_text("")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(scored, scored.parent / "file/report.html")
    result = CliRunner().invoke(app, ["report", str(scored), "--out", str(out), "--overwrite", "--by", "B"])
    assert "66 rows, 1 with an error" in result.stdout
    assert out.read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("width", [320, 390, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_shows_in_a_browser_on_a_phone_and_in_dark(browser, scored, width, scheme):
    report(scored)
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    page = context.new_page()
    asked, faults = [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: faults.append(message.text))
    page.goto(scored.with_name("report.html").as_uri())
    assert page.title() == "Scores in scores.parquet"  # no prompt has run
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    assert faults == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    assert page.locator("img:not([alt]), svg:not([aria-label])").count() == 0
    assert page.locator("table:not(:has(th[scope]))").count() == 0
    assert HOSTILE.split()[0] in page.locator("main").inner_text()
    assert_readable(page, scheme)
    context.close()


def test_it_prints_light_on_a_few_pages_with_its_pictures(browser, scored):
    report(scored)
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(scored.with_name("report.html").as_uri())
    page.emulate_media(media="print")
    assert_readable(page, "light")
    sheets = len(re.findall(rb"/Type\s*/Page\b", page.pdf()))
    assert 2 <= sheets <= 14
    context.close()


def test_the_commands_and_the_python_of_the_pages_run_as_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    rows = rows_for_samples(2)
    for row, picture in zip(rows, pictures(len(rows))):
        (tmp_path / row["image"]).parent.mkdir(exist_ok=True)
        picture.save(row["image"])
    write(tmp_path / "scores.parquet", [rows[0], rows[2]])
    pages = [ROOT / name for name in ("README.md", "docs/reports.md")]
    lines = [
        line for page in pages for line in page.read_text().splitlines() if "imagereward report " in line
    ]
    assert len(lines) == 2
    for line in lines:
        result = CliRunner().invoke(app, shlex.split(line)[1:], catch_exceptions=False)
        assert result.stdout == "report.html: 2 rows, 0 with an error, 0 images not shown\n"
        (tmp_path / "report.html").unlink()
    (block,) = re.findall(r"```python\n(.*?)```", pages[1].read_text(), re.DOTALL)
    exec(block, {})
    assert re.search(r"print\(summary\)  # (.*)", block).group(1) in capsys.readouterr().out
