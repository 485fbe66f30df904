"""What judges are asked, and how answers become numbers: pure functions, with numbers worked out by hand."""

import json
import math
import re
import tomllib
from pathlib import Path

import numpy as np
import pytest

from imagereward.errors import InputError
from imagereward.models.vlm.asking.questions import Asked, aggregate, read_questions
from imagereward.models.vlm.asking.settings import HeadConfig, JudgeConfig
from imagereward.models.vlm.asking.templates import TEMPLATES, Template, read_template, template_of
from imagereward.models.vlm.asking.verdicts import Grammar
from imagereward.models.vlm.catalogue import JUDGES
from imagereward.models.vlm.tournament import Outcome, schedule, strengths

GRAMMAR = Grammar({"Alignment": 2, "Style": 1}, low=1, high=5)


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("Alignment: 5\nStyle: 1", 2 / 3),
        ("alignment: 4\nSTYLE: 2", (2 * 0.75 + 0.25) / 3),
        ("Thoughts first.\n- **Alignment: 3**\n* Style: 5/5.", (2 * 0.5 + 1) / 3),
        ("Alignment Score (1-5): 4.5\nStyle Score (1-5): 1", 2 * 0.875 / 3),
    ],
)
def test_a_verdict_is_the_weighted_mean_of_its_numbers(text, score):
    assert GRAMMAR.score(text) == pytest.approx(score)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Alignment: 5",  # a name is missing
        "Alignment: 5\nAlignment: 4\nStyle: 3",  # twice
        "Alignment: 6\nStyle: 3",  # out of the scale
        "Alignment: 0\nStyle: 3",
        "Alignment: 4/10\nStyle: 3",  # another scale
        "Alignment: four\nStyle: 3",
        "Alignment: 1-5\nStyle: 3",  # the scale, repeated
        "Alignment 5\nStyle 3",
        "I would say Alignment: 5, Style: 3",
        "Alignment: 5 or 4\nStyle: 3",
    ],
)
def test_a_text_without_a_verdict_is_nan(text):
    assert math.isnan(GRAMMAR.score(text))


def test_samples_are_averaged_over_those_with_a_verdict():
    assert GRAMMAR.mean_score(["Alignment: 5\nStyle: 5", "?", "Alignment: 1\nStyle: 1"]) == pytest.approx(0.5)
    assert math.isnan(GRAMMAR.mean_score(["?", ""]))


@pytest.mark.parametrize("values", [{"fields": {}}, {"fields": {"a": 0}}, {"fields": {"a": 1}, "low": 5}])
def test_a_grammar_without_meaning_is_refused(values):
    with pytest.raises(InputError, match="grammar"):
        Grammar(**values)


def test_a_template_puts_the_prompt_in_its_place_and_nothing_else():
    template = Template("t", "a{image}b {prompt} {c}", answers=("Yes",))
    assert template.parts("x {image} {prompt}") == ["a", None, "b x {image} {prompt} {c}"]
    assert TEMPLATES["compare"].parts("p").count(None) == 2


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"text": "{image} ok?"}, "no place for the prompt: write {prompt}"),
        ({"text": "{prompt}"}, "0 places for the image"),
        ({"text": "{image}{image}{prompt}"}, "2 places for the image"),
        ({"text": "{image}{prompt}", "answers": "Yes"}, "expected a list of texts"),
        ({"text": "{image}{prompt}", "token": "<r>"}, "'<r>' is 0 times"),
        ({"text": 3}, "expected a text"),
    ],
)
def test_a_template_that_cannot_be_asked_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        Template("t", **values)


def test_the_descriptions_of_judges_in_the_docs_are_valid():
    page = (Path(__file__).parents[1] / "docs/judges.md").read_text()
    found = [
        JudgeConfig.from_dict(tomllib.loads(text)) for text in re.findall(r"```toml\n(.*?)```", page, re.S)
    ]
    assert [each.readout for each in found] == ["answer", "verdict"]
    written = "Content: 5\nStyle: 3"
    assert found[1].template.grammar.score(written) == pytest.approx(0.7 + 0.3 / 2)


def test_templates_are_read_from_files(tmp_path):
    (tmp_path / "mine.toml").write_text('text = "{image}Good {prompt}?"\nanswers = ["Yes"]\n')
    mine = read_template(tmp_path / "mine.toml")
    assert (mine.name, mine.answers) == ("mine", ("Yes",))
    rubric = TEMPLATES["rubric"]
    (tmp_path / "rubric.json").write_text(json.dumps(rubric.to_dict()))
    assert template_of(str(tmp_path / "rubric.json")) == rubric
    (tmp_path / "bad.toml").write_text('text = "{image}{prompt}"\nanswer = ["Yes"]\n')
    with pytest.raises(InputError, match="did you mean 'answers'"):
        read_template(tmp_path / "bad.toml")
    with pytest.raises(InputError, match=r"template .*none\.toml"):
        template_of(tmp_path / "none.toml")
    with pytest.raises(InputError, match="did you mean 'shows'"):
        template_of("show")
    (tmp_path / "large.toml").write_text(f'text = "{"x" * 2**18}"')
    with pytest.raises(InputError, match="more than 262144 bytes"):
        read_template(tmp_path / "large.toml")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"readout": "yes"}, "expected one of answer, head, verdict"),
        ({"readout": "verdict"}, "'shows' has no grammar"),
        ({"readout": "head"}, "needs a head"),
        ({"template": TEMPLATES["rubric"]}, "'rubric' has no answers"),
        ({"samples": 2}, "are all the same; give a temperature"),
        ({"pixels": (5, 4)}, r"expected \(least, most\)"),
        ({"new_tokens": 0}, "new_tokens=0"),
        ({"temperature": -1}, "temperature=-1"),
        ({"positions": "none"}, "positions"),
        ({"resize": "pillow"}, "pillow with pixels="),
        ({"aggregate": "median"}, "aggregate='median'"),
    ],
)
def test_a_judge_without_sense_is_refused(values, message):
    with pytest.raises(InputError, match=message):
        JudgeConfig(**values)


def test_a_judge_is_written_and_read_back():
    judge = JudgeConfig("m", "head", head=HeadConfig((4,), 1), pixels=(64, 128))
    assert JudgeConfig.from_dict(json.loads(json.dumps(judge.to_dict()))) == judge
    assert JudgeConfig.from_dict({"template": "question"}).template is TEMPLATES["question"]


def test_every_known_judge_says_what_is_verified():
    known = {"HPSv3", "judge", "VQAScore-Qwen2.5-VL-7B", "VQAScore-Qwen3-VL-8B", "UnifiedReward-2.0-2b"}
    assert known <= set(JUDGES)
    for judge in JUDGES.values():
        assert judge.config().readout == judge.readout
        assert all((judge.scores, judge.licence, judge.paper, judge.verified, judge.unverified))
        assert judge.gigabytes == 2 * judge.billions > 0


DPG = """item_id,text,proposition_id,dependency,question_natural_language
a,a red cat on a mat,1,0,Is there a cat?
a,a red cat on a mat,2,1,Is the cat red?
a,a red cat on a mat,3,0,Is there a mat?
a,a red cat on a mat,4,"1,3",Is the cat on the mat?
b,,1,0,Is there a dog?
"""


@pytest.mark.parametrize("text", ["{prompt} {image_b} {image}", "{prompt} {image} {image_b} {image_b}"])
def test_a_comparison_shows_its_images_in_order_and_once(text):
    with pytest.raises(InputError, match=r"expected \{image_b\} once, after \{image\}"):
        Template("mine", text, answers=("A",), against=("B",))


def test_dpg_questions_are_read_with_their_dependencies(tmp_path):
    (tmp_path / "dpg.csv").write_text(DPG)
    table = read_questions(tmp_path / "dpg.csv")
    assert list(table) == ["a red cat on a mat", "b"]
    cat = table["a red cat on a mat"]
    assert [each.parents for each in cat] == [(), (0,), (), (0, 2)]
    # A cat of .4 makes "red" and "on the mat" count as 0.
    assert aggregate([0.4, 0.9, 0.8, 0.9], cat, "arithmetic") == pytest.approx((0.4 + 0.8) / 4)
    assert aggregate([0.5, 0.9, 0.8, 0.9], cat, "arithmetic") == pytest.approx((0.5 + 0.9 + 0.8 + 0.9) / 4)
    assert aggregate([0.5, 0.9, 0.8, 0.9], cat, "geometric") == pytest.approx((0.5 * 0.9 * 0.8 * 0.9) ** 0.25)


def test_the_name_of_a_grade_may_end_in_any_character():
    assert Grammar({"Style (1-5)": 1}, low=1, high=5).score("Style (1-5): 4") == 0.75
    assert math.isnan(Grammar({"Style": 1}, low=1, high=5).score("Styles: 4"))


def test_a_parent_that_failed_through_its_own_parent_fails_its_children():
    chain = (Asked("a"), Asked("b", parents=(0,)), Asked("c", parents=(1,)))
    assert aggregate([0.1, 0.9, 0.9], chain, "arithmetic") == pytest.approx(0.1 / 3)


def test_geneval2_questions_are_read_with_their_answers(tmp_path):
    rows = [
        {
            "prompt": "two dogs",
            "atom_count": 2,
            "vqa_list": [["How many dogs?", "two"], "Any dog?"],
            "skills": [],
        },
        {"prompt": "a cat", "vqa_list": [{"question": "Which animal?", "answer": "cat"}]},
    ]
    rows.append({"prompt": "a line\u2028separator", "vqa_list": ["Any line?"]})
    text = "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
    (tmp_path / "g.jsonl").write_text(text, encoding="utf-8")
    table = read_questions(tmp_path / "g.jsonl")
    assert table["two dogs"] == (Asked("How many dogs?", "two"), Asked("Any dog?"))
    assert table["a cat"] == (Asked("Which animal?", "cat"),)
    assert table["a line\u2028separator"] == (Asked("Any line?"),)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "item_id,question\na,b\n", "no column proposition_id, dependency"),
        ("a.csv", "item_id,proposition_id,dependency\na,1,0\n", "no column question"),
        ("a.csv", "item_id,proposition_id,dependency,question\na,1,7,x\n", "proposition 7, which it has not"),
        ("a.csv", "item_id,proposition_id,dependency,question\na,1,2,x\na,2,1,y\n", "in a circle"),
        ("a.csv", "item_id,proposition_id,dependency,question\na,1,0,\n", "expected a text"),
        ("a.csv", "", "no column"),
        ("a.jsonl", '{"prompt": "a"}', "expected an object with prompt and vqa_list"),
        ("a.jsonl", '{"prompt": "a", "vqa_list": ["b"]}\n{', "a.jsonl.*line 2 is not JSON"),
        ("a.json", "[]", "it has no questions"),
    ],
)
def test_a_damaged_question_file_is_named_with_its_fault(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message):
        read_questions(tmp_path / name)


def test_every_pair_is_compared_once_and_a_budget_connects_all():
    for count in range(2, 8):
        pairs = schedule(count)
        assert len({frozenset(pair) for pair in pairs}) == len(pairs) == count * (count - 1) // 2
        reached = {0}
        for _ in range(count):
            reached |= {place for pair in schedule(count, count - 1) if set(pair) & reached for place in pair}
        assert reached == set(range(count))
    assert schedule(1) == []
    with pytest.raises(InputError, match="expected at least 3"):
        schedule(4, 2)


def test_bradley_terry_recovers_the_strengths_that_made_the_shares():
    true = np.array([1.5, 0.2, -0.6, -1.1])
    share = lambda a, b: 1 / (1 + np.exp(true[b] - true[a]))  # noqa: E731
    outcomes = [Outcome(a, b, share(a, b)) for a, b in schedule(4)] * 50
    np.testing.assert_allclose(strengths(4, outcomes), true - true.mean(), atol=0.01)
    wins = strengths(4, outcomes, "win-rate")
    assert wins[0] == pytest.approx(np.mean([share(0, other) for other in (1, 2, 3)]))
    assert strengths(2, [Outcome(0, 1, 1.0)])[0] > 0  # finite though one image always wins
    assert strengths(1, []) == [0.0]
    assert strengths(2, [], "win-rate").tolist() == [0.5, 0.5]
    with pytest.raises(InputError, match="method='elo'"):
        strengths(2, [], "elo")
