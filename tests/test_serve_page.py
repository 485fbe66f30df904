"""The page at /, in a real browser: what a person sees, with mouse, keyboard, phone and dark mode."""

import math
import re
from pathlib import Path

import PIL.Image
import pytest
from conftest import pictures, small_scorer

from benchmarks.lib.browsing import assert_readable
from benchmarks.lib.serving import client, serving
from imagereward.scoring.api import PairScorer

PROMPT = "a red bicycle"


def test_the_page_loads_nothing_from_elsewhere():
    with serving(small_scorer("CLIP")) as url:
        answer = client(url).get("/")
    assert not re.findall(r"https?://|//\w+\.\w+|@import|url\(", answer.text)
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


@pytest.fixture
def visit(browser):
    """Opens an address; fails the test if the page logs an error or asks anyone but the server."""
    contexts, faults = [], []

    def open_page(url: str, **options):
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on(
            "request",
            lambda request: request.url.startswith((url, "blob:", "data:")) or faults.append(request.url),
        )
        page.goto(url)
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert not faults


@pytest.fixture(scope="module")
def scorer():
    return small_scorer("ImageReward")


@pytest.fixture(scope="module")
def url(scorer):
    with serving({"ImageReward": scorer, "CLIP": small_scorer("CLIP")}) as url:
        yield url


def shown(page) -> list[tuple[str, str, str]]:
    """(rank, score, file) of every result, in order."""
    return [
        tuple(item.locator(part).inner_text() for part in (".place", "b", "small"))
        for item in page.locator("main li").all()
    ]


def expected(scorer, prompt: str, paths: list[str]) -> list[tuple[str, str, str]]:
    ranking = scorer.rank(prompt, paths)
    rewards = [f"{ranking.rewards[index]:.4f}" for index in ranking.order]
    return [
        (str(ranking.ranks[index]), reward, Path(paths[index]).name)
        for index, reward in zip(ranking.order, rewards)
    ]


def test_images_and_prompts_become_rankings(visit, url, scorer, image_paths):
    page = visit(url)
    page.fill("#prompts", f"{PROMPT}\n\ntwo cats\n")
    page.set_input_files("#files", image_paths)
    page.click("#go")
    page.wait_for_selector("main section:nth-of-type(2)")
    assert shown(page) == [*expected(scorer, PROMPT, image_paths), *expected(scorer, "two cats", image_paths)]
    assert page.locator("main h2").all_inner_texts() == [PROMPT, "two cats"]
    assert "5 images ranked by ImageReward" in page.inner_text("[role=status]")
    # Every picture really shows: a policy that forbids blob: would leave them empty.
    assert all(page.evaluate("[...document.images].map((image) => image.naturalWidth > 0)"))


def test_an_image_without_a_verdict_comes_last_and_the_others_are_ranked(visit, image_paths):
    class Picky(PairScorer):
        name, may_be_nan = "picky", True

        def score_pairs(self, prompts, images, *, batch_size=None):
            return [math.nan if image.width == 64 else float(image.width) for image in images]

    with serving({"picky": Picky()}) as url:
        page = visit(url)
        page.set_input_files("#files", image_paths)
        page.fill("#prompts", "a cat")
        page.click("#go")
        page.wait_for_selector("main li")
        texts = [item.inner_text() for item in page.locator("main li").all()]
    wide = [PIL.Image.open(path).width for path in image_paths]
    assert sum("no score" in text for text in texts) == wide.count(64) > 0
    assert all("no score" in text for text in texts[-wide.count(64) :])
    assert f"{max(value for value in wide if value != 64):.4f}" in texts[0]


def test_everything_can_be_done_from_the_keyboard(visit, url, scorer, image_paths):
    page = visit(url)
    page.keyboard.press("Tab")
    page.keyboard.type(PROMPT)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "files"
    page.set_input_files("#files", image_paths)  # the system's own dialogue, which no test can type into
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "Remove 0.png"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.ariaLabel") == "Remove 1.png"
    page.focus("#prompts")
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("main li")
    assert shown(page) == expected(scorer, PROMPT, image_paths[1:])


def test_images_can_be_dropped(visit, url, image_paths):
    page = visit(url)
    page.evaluate(
        """async (bytes) => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(bytes)], "dropped.png", { type: "image/png" }));
            document.getElementById("drop").dispatchEvent(
                new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
        }""",
        list(Path(image_paths[0]).read_bytes()),
    )
    page.fill("#prompts", "a")
    page.click("#go")
    page.wait_for_selector("main li")
    assert [name for *_, name in shown(page)] == ["dropped.png"]


def test_what_is_wrong_is_said_and_nothing_is_lost(visit, url, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image")
    page = visit(url)
    page.fill("#prompts", PROMPT)
    page.click("#go")
    assert page.inner_text("#status") == "Choose images first."
    page.set_input_files("#files", tmp_path / "broken.png")
    page.click("#go")
    page.locator("#status", has_text="is no image").wait_for()
    assert page.input_value("#prompts") == PROMPT
    assert page.is_enabled("#go")


def test_names_and_prompts_are_text_and_never_markup(visit, url, tmp_path):
    name = "<img src=x onerror=alert(1)>.png"
    pictures(1)[0].save(tmp_path / name)
    page = visit(url)
    page.fill("#prompts", "<script>alert(1)</script>")
    page.set_input_files("#files", tmp_path / name)
    page.click("#go")
    page.wait_for_selector("main li")
    assert page.inner_text("main h2") == "<script>alert(1)</script>"
    assert shown(page)[0][2] == name


def test_a_server_with_a_token_asks_for_it(visit, image_paths, scorer):
    with serving(scorer, token="s3cret") as url:
        page = visit(url)
        page.wait_for_selector("#token", state="visible")
        page.fill("#token", "s3cret")
        page.fill("#prompts", PROMPT)
        page.set_input_files("#files", image_paths)
        page.click("#go")
        page.wait_for_selector("main li")
        assert shown(page) == expected(scorer, PROMPT, image_paths)


@pytest.mark.parametrize("width", [320, 390, 1100])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_is_readable_in_light_and_dark(visit, url, image_paths, width, scheme):
    page = visit(url, viewport={"width": width, "height": 700}, color_scheme=scheme)
    page.fill("#prompts", "w" * 200)
    page.set_input_files("#files", image_paths)
    page.click("#go")
    page.wait_for_selector("main li")
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert_readable(page, scheme)


def test_every_control_has_a_name_for_those_who_cannot_see_it(visit, url, image_paths):
    page = visit(url)
    page.set_input_files("#files", image_paths[:1])
    named = "(element) => element.labels?.length || element.ariaLabel || element.textContent.trim()"
    for control in page.locator("textarea, select, input, button").all():
        assert control.evaluate(named)
    assert page.locator("img:not([alt])").count() == 0
    assert page.get_attribute("html", "lang") == "en"
