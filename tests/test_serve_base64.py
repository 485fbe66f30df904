"""Images in JSON, in every way in which programs write base64, and what is none."""

import base64
import json
import textwrap
from urllib.parse import quote

import pytest
from conftest import pictures, small_scorer

from benchmarks.lib.serving import client, png, serving

PNG = png(pictures(1)[0])
BARE = base64.b64encode(PNG).decode()
JSON = {"Content-Type": "application/json"}
assert set("+/=") <= set(BARE)


@pytest.fixture(scope="module")
def served():
    scorer = small_scorer("CLIP")
    with serving(scorer) as url:
        yield client(url), scorer.score("a", PNG)


@pytest.mark.parametrize(
    "text",
    [
        BARE,
        f"data:image/png;base64,{BARE}",
        f"data:;base64,{BARE}",
        f"data:application/octet-stream;name=a.png;base64,{BARE}",
        f"DATA:Image/PNG;charset=utf-8;Base64,{BARE}",
        f" \n data:image/png;base64,\n{BARE}\n",
        f"data:image/png;base64,{quote(BARE, safe='')}",
        f"data:image/png;base64,{BARE.replace('=', '%3D')}%0A",
        "\n".join(textwrap.wrap(BARE, 76)),
        "\r\n".join(textwrap.wrap(BARE, 64)) + "\r\n",
        "data:image/png;base64,\n" + "\n".join(textwrap.wrap(BARE, 60)),
        "  ".join(textwrap.wrap(BARE, 11)),
        f"\t{BARE} ",
        BARE.rstrip("="),
        base64.urlsafe_b64encode(PNG).decode(),
        base64.urlsafe_b64encode(PNG).decode().rstrip("="),
    ],
)
def test_base64_is_taken_as_programs_write_it(served, text):
    http, score = served
    answer = http.post("/v1/rank", json={"prompt": "a", "images": [text]})
    assert answer.json()["scores"] == pytest.approx([score], abs=1e-6), answer.text
    answer = http.post("/score", json={"prompt": "a", "image_base64": text})
    assert answer.json() == {"score": pytest.approx(score, abs=1e-6)}


def test_base64_is_taken_with_the_escapes_of_every_json_writer(served):
    http, score = served
    for old, new in (("/", "\\/"), ("+", "\\u002b"), ("=", "\\u003d")):
        body = json.dumps({"prompt": "a", "images": [f"data:image/png;base64,{BARE}"]}).replace(old, new)
        answer = http.post("/v1/rank", content=body.encode(), headers=JSON)
        assert answer.json()["scores"] == pytest.approx([score], abs=1e-6), answer.text


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("data:image/svg+xml,<svg/>", "is a data: URL that is not in base64"),
        ("data:image/png;base64", "begins as a URL does (data:)"),
        (f"data:image/png,{BARE}", "is a data: URL that is not in base64"),
        ("http://127.0.0.1/a.png", "nothing is fetched or opened here"),
        ("file:///etc/passwd", "begins as a URL does (file:)"),
        ("s3://bucket/a.png", "begins as a URL does (s3:)"),
        ("a.png", "is not base64"),
        (r"C:\pictures\a.png", "is not base64"),
        ("é" + BARE, "letters outside ASCII"),
        (BARE[:8] + "=" + BARE[8:], "is not base64"),
        (BARE + BARE, "is not base64"),
        ("A" * 9, "is not base64"),
        (BARE[:40] + "!" + BARE[40:], "is not base64"),
        ("data:image/png;base64," + BARE[:40] + "%21" + BARE[41:], "is not base64"),
        ("", "is empty: 0 bytes"),
        ("data:image/png;base64,", "is empty: 0 bytes"),
        ("AAAA", "no image"),
    ],
)
def test_what_is_no_base64_is_refused_with_the_reason_and_without_the_text(served, text, reason):
    http, _ = served
    answer = http.post("/v1/rank", json={"prompt": "a", "images": [BARE, text]})
    assert answer.status_code == 422
    detail = answer.json()["detail"]
    assert detail.startswith("images[1]")
    assert reason in detail
    assert len(detail) < 300
