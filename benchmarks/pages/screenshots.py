"""Takes the docs' screenshots with a headless browser: `python -m benchmarks.pages.screenshots`.

Writes docs/demo.png, the page of `imagereward demo`, and docs/server.png, the server's page with a ranking.
"""

import tempfile
from pathlib import Path

from playwright.sync_api import sync_playwright

import imagereward as RM
from benchmarks.lib.browsing import CHROMIUM, FLAGS
from benchmarks.lib.paths import DOCS
from benchmarks.lib.serving import serving
from imagereward import demo


def of_the_demo(browser, work: Path) -> None:
    """docs/demo.png: the page of `imagereward demo` with two prompts."""
    page = browser.new_page(viewport={"width": 950, "height": 535})
    page.goto(demo.write_page(demo.judge(4, 6, 0), work / "demo.html").as_uri())
    page.screenshot(path=DOCS / "demo.png")


def of_the_server(browser, work: Path) -> None:
    """docs/server.png: eight pictures of one prompt, ranked by ImageReward-tiny on the server's page."""
    judged = demo.judge(1, 8, 11)[0]
    files = [str(work / f"{place}.png") for place in range(8)]
    for file, image in zip(files, judged.ranking.images):
        image.save(file)
    with serving(RM.load("ImageReward-tiny", "cpu")) as url:
        page = browser.new_page(viewport={"width": 950, "height": 810})
        page.goto(url)
        page.fill("#prompts", judged.ranking.prompt)
        page.set_input_files("#files", files)
        page.click("#go")
        page.wait_for_selector("main section li")
        page.screenshot(path=DOCS / "server.png")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as work, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        for picture in (of_the_demo, of_the_server):
            picture(browser, Path(work))
        browser.close()
