"""Judges behind OpenAI-compatible servers: `transformers serve` on loopback, and a scripted server."""

import importlib.util
import json
import math
import pickle
import socket
import subprocess
import sys
import threading
import time
import traceback
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from conftest import pictures

import imagereward as RM
from imagereward.bulk import score_table
from imagereward.errors import InputError, NonFiniteScoreError, RemoteError, UnreadableVerdictWarning

GOOD = "Alignment: 5\nCoherence: 3\nAesthetics: 1"
KEY = "sk-test-of-this-file"


class Script(BaseHTTPRequestHandler):
    """Answers with what `server.answers` holds next: (status, body or text of a message)."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        answers = self.server.answers
        status, answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if callable(answer):
            answer = answer(body)
        if isinstance(answer, str):
            answer = {
                "choices": [{"message": {"content": answer}}],
                "usage": {"prompt_tokens": 10, "completion_tokens": 5},
            }
        data = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.send_header("Retry-After", "0")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr("imagereward.remote.protocol.FIRST_WAIT", 0.0)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Script)
    httpd.seen, httpd.answers = [], [(200, GOOD)]
    httpd.url = f"http://127.0.0.1:{httpd.server_port}/v1"
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    yield httpd
    httpd.shutdown()
    httpd.server_close()


def logprobs(*listed):
    content = [{"token": listed[0][0], "logprob": listed[0][1]}]
    content[0]["top_logprobs"] = [{"token": token, "logprob": value} for token, value in listed]
    return {"choices": [{"message": {"content": listed[0][0]}, "logprobs": {"content": content}}]}


def test_written_verdicts_become_scores_in_every_verb(server):
    judge = RM.connect(server.url, "m")
    images = pictures(3)
    expected = 0.5 * 1 + 0.25 * 0.5  # the weights of the rubric
    assert judge.score("a cat", images[0]) == pytest.approx(expected)
    assert judge.rank("a cat", images).ranks == [1, 1, 1]
    assert judge.score_matrix(["a", "b"], images).shape == (2, 3)
    assert torch.allclose(judge.pixel_rewards(torch.rand(2, 3, 8, 8), ["a", "b"]), torch.tensor(expected))
    path, _, body = server.seen[0]
    assert path == "/v1/chat/completions"
    assert (body["model"], body["temperature"]) == ("m", 0.0)
    kinds = [part["type"] for part in body["messages"][0]["content"]]
    assert kinds == ["image_url", "text"]
    assert body["messages"][0]["content"][0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert judge.used == {"requests": 12, "tokens read": 120, "tokens written": 60}


def test_probabilities_of_answers_are_read_where_they_are_offered(server):
    server.answers = [
        (200, logprobs(("Yes", math.log(0.7)), ("No", math.log(0.2)), (" Yes", math.log(0.05))))
    ]
    judge = RM.connect(server.url, "m", template="shows")
    assert judge.score("a cat", pictures(1)[0]) == pytest.approx(0.7)
    body = server.seen[0][2]
    assert (body["max_tokens"], body["logprobs"], body["top_logprobs"]) == (1, True, 20)
    server.answers = [(400, {"error": "logprobs is not supported"})]
    with pytest.raises(InputError, match="gives no log-probabilities"):
        judge.score("a cat", pictures(1)[0])


def bare(*listed):
    """A reply without log-probabilities of others than the token that was written."""
    reply = logprobs(("Yes", -0.1))
    reply["choices"][0]["logprobs"]["content"][0]["top_logprobs"] = list(listed)
    return reply


@pytest.mark.parametrize("answer", ["Yes", bare()])
def test_a_server_without_log_probabilities_is_refused_before_all_is_asked(server, answer):
    server.answers = [(200, answer)]
    with pytest.raises(InputError, match=r"gives no log-probabilities.*template='rubric'"):
        RM.connect(server.url, "m", template="shows").score("a cat", pictures(1)[0])
    server.seen.clear()
    with pytest.raises(InputError, match=r"gives no log-probabilities"):
        RM.connect(server.url, "m", template="shows", connections=2).score("a cat", pictures(1) * 50)
    assert len(server.seen) < 10


def test_a_reply_without_any_of_the_answers_is_nan_warned_of_and_counted(server):
    good = logprobs(("Yes", math.log(0.7)), ("No", math.log(0.2)))
    server.answers = [(200, good), (200, logprobs(("The", -0.1), ("A", -2.0))), (200, "Yes"), (200, good)]
    judge = RM.connect(server.url, "m", template="shows", connections=1)
    with pytest.warns(
        UnreadableVerdictWarning, match="2 of 4 replies list none of Yes among .* such as 'The'"
    ):
        scores = judge.score("a cat", pictures(4))
    assert scores == pytest.approx([0.7, math.nan, math.nan, 0.7], nan_ok=True)
    assert judge.unreadable == 2


def test_a_prompt_cannot_use_marks_of_usual_forms(server):
    judge = RM.connect(server.url, "m", template="rubric")
    marks = ["<|im_end|>", "<start_of_turn>", "</s>", "[INST]", "[/INST]", "<image>", "<\uff5cUser\uff5c>"]
    judge.score("a cat " + "".join(marks) + " 1 < 2 [sic]", pictures(1)[0])
    (text,) = [part["text"] for part in server.seen[0][2]["messages"][0]["content"] if "text" in part]
    assert not [mark for mark in marks if mark in text]
    assert "a cat < |im_end|>" in text
    assert "1 < 2 [sic]" in text


def test_texts_without_a_verdict_are_nan_and_counted(server):
    server.answers = [(200, GOOD), (200, "I cannot say"), (200, GOOD)]
    judge = RM.connect(server.url, "m", connections=1)
    with pytest.warns(UnreadableVerdictWarning, match="1 of 3 texts hold no verdict.*I cannot say"):
        scores = judge.score("a cat", pictures(3))
    assert [math.isnan(score) for score in scores] == [False, True, False]
    assert judge.unreadable == 1
    server.answers = [(200, "no")]
    with (
        pytest.warns(UnreadableVerdictWarning),
        pytest.raises(NonFiniteScoreError, match="no verdict on 2 of 2"),
    ):
        judge.rank("a cat", pictures(2))


def test_samples_are_averaged(server):
    server.answers = [(200, GOOD), (200, GOOD.replace("5", "1")), (200, "?")]
    judge = RM.connect(server.url, "m", samples=3, temperature=1.0)
    with pytest.warns(UnreadableVerdictWarning):
        assert judge.score("a cat", pictures(1)[0]) == pytest.approx((0.625 + 0.125) / 2)
    with pytest.raises(InputError, match="are all the same"):
        RM.connect(server.url, "m", samples=3)


def test_a_full_server_is_asked_again_and_a_refusal_is_not(server):
    server.answers = [(429, {"error": "slow down"}), (503, {}), (200, GOOD)]
    judge = RM.connect(server.url, "m")
    assert judge.score("a cat", pictures(1)[0]) == pytest.approx(0.625)
    assert len(server.seen) == 3
    server.answers = [(401, {"error": "wrong key"})]
    with pytest.raises(RemoteError, match=r"HTTP 401.*wrong key") as caught:
        judge.score("a cat", pictures(2))
    assert set(caught.value.causes) == {0, 1}
    assert len(server.seen) == 5
    server.answers = [(200, {"no": "choices"})]
    with pytest.raises(RemoteError, match="answered in another form"):
        judge.score("a cat", pictures(1)[0])


def test_training_masks_what_failed(server):
    server.answers = [(200, GOOD), (400, {"error": "bad"})]
    rewards = RM.connect(server.url, "m", connections=1).pixel_rewards(torch.rand(2, 3, 8, 8), ["a", "b"])
    assert rewards[0] == pytest.approx(0.625)
    assert rewards[1].isnan()


def test_budgets_stop_before_and_within_a_run(server):
    judge = RM.connect(server.url, "m", requests=3, tokens=20, connections=1)
    with pytest.raises(InputError, match=r"4 requests, and 3 are left of requests=3"):
        judge.score("a cat", pictures(4))
    assert not server.seen
    with pytest.raises(RemoteError, match=r"gave no score for 1 of 3.*tokens=20 is used up"):
        judge.score("a cat", pictures(3))
    assert len(server.seen) == 2


def test_tries_that_failed_count_for_the_budget_of_requests(server):
    server.answers = [(503, {"error": "starting"})]
    judge = RM.connect(server.url, "m", requests=4, connections=2, retries=5)
    with pytest.raises(RemoteError, match=r"the budget of requests=4 is used up"):
        judge.score("a cat", pictures(2))
    assert len(server.seen) == judge.used["requests"] == 4
    judge = RM.connect(server.url, "m", requests=2, retries=5)
    with pytest.raises(
        RemoteError, match=r"requests=2 is used up; the try before failed with HTTP 503.*starting"
    ):
        judge.score("a cat", pictures(1)[0])


def test_the_cost_is_printed_before_a_run_of_several(server, capsys):
    judge = RM.connect(server.url, "m", prices=(2.0, 10.0))
    judge.score("a cat", pictures(1)[0])
    assert not capsys.readouterr().err
    judge.score("a cat", pictures(3))
    told = capsys.readouterr().err
    read = 3 * (len(judge.template.text) + len("a cat")) // 4
    assert (
        f"3 requests, about {read} tokens of text and 3 images to read, at most 192 tokens to write" in told
    )
    assert f"about {(2 * read + 10 * 192) / 1e6:.4f} beside the images" in told


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(server, monkeypatch, capsys, caplog):
    monkeypatch.setenv("JUDGE_KEY", KEY)
    judge = RM.connect(server.url, "m", key_variable="JUDGE_KEY")
    judge.score("a cat", pictures(2))
    assert server.seen[0][1]["Authorization"] == f"Bearer {KEY}"
    server.answers = [(401, {"error": f"the key {KEY} is wrong"})]
    with pytest.raises(RemoteError) as caught:
        judge.score("a cat", pictures(2))
    shown = capsys.readouterr()
    everywhere = [str(caught.value), repr(judge), shown.out, shown.err, caplog.text, str(vars(judge))]
    assert not [text for text in everywhere if KEY in text]
    for status, answer in [
        (401, {"error": "x" * (300 - len('{"error": "') - 5) + KEY}),  # would be cut within the key
        (200, {"error": f"the key {KEY} is wrong"}),
        (200, {**logprobs((KEY, KEY)), "error": KEY}),
    ]:
        server.answers = [(status, answer)]
        with pytest.raises(RemoteError) as caught:
            judge.score("a cat", pictures(1)[0])
        assert KEY[:5] not in "".join(traceback.format_exception(caught.value))
    assert KEY.encode() not in pickle.dumps(judge)
    assert pickle.loads(pickle.dumps(judge)).url == judge.url
    monkeypatch.delenv("JUDGE_KEY")
    server.answers = [(200, GOOD)]
    judge.score("a cat", pictures(1)[0])
    assert "Authorization" not in server.seen[-1][1]


def test_what_cannot_be_asked_is_refused(server):
    with pytest.raises(InputError, match="say which model= is asked"):
        RM.connect(server.url)
    with pytest.raises(InputError, match="gives no score of one image"):
        RM.connect(server.url, "m", template="compare")
    with pytest.raises(InputError, match="takes its key from the variable"):
        RM.connect("http://me:secret@127.0.0.1:1/v1", "m")
    with pytest.raises(RemoteError, match="Connect"):
        RM.connect("http://127.0.0.1:9/v1", "m", retries=0).score("a", pictures(1)[0])


@pytest.mark.skipif(not importlib.util.find_spec("openai"), reason="transformers serve needs openai")
def test_transformers_serve_writes_what_the_model_writes_here(tiny_vlm):
    directory = tiny_vlm("Qwen2-VL")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [Path(sys.executable).with_name("transformers"), "serve", directory, "--device", "cpu"]
    command += ["--dtype", "float32", "--host", "127.0.0.1", "--port", port]
    process = subprocess.Popen(
        [str(part) for part in command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        for _ in range(1200):
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
                break
            except OSError:
                assert process.poll() is None
                time.sleep(0.1)
        here = RM.load(f"judge:{directory}", "cpu", new_tokens=6)
        there = RM.connect(f"http://127.0.0.1:{port}/v1", str(directory), new_tokens=6)
        prompts, images = ["a cat", "two dogs"], pictures(2)
        assert there.written_texts(prompts, images) == here.written_texts(prompts, images)
        with pytest.warns(UnreadableVerdictWarning, match="2 of 2"):
            assert all(map(math.isnan, there.score("a cat", images)))
        with pytest.raises(InputError, match="gives no log-probabilities"):
            RM.connect(there.url, str(directory), template="shows").score("a cat", images[0])
    finally:
        process.terminate()
        process.wait(10)


def test_a_table_is_scored_by_a_remote_judge_row_by_row(server, tmp_path, monkeypatch, capsys):
    source = f"import imagereward as RM\njudge = RM.connect({server.url!r}, model='m', connections=1)\n"
    (tmp_path / "table_judge.py").write_text(source)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    rows = []
    for index, image in enumerate(pictures(4)):
        image.save(tmp_path / f"{index}.png")
        rows.append({"prompt": "a red thing", "image": f"{index}.png"})
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    server.answers[:] = [(200, GOOD), (400, "no"), (200, "I cannot say"), (200, GOOD)]
    with pytest.warns(UnreadableVerdictWarning):
        score_table("rows.jsonl", "out.jsonl", "table_judge:judge", device="cpu", workers=0, part_rows=4)
    found = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["error"] and "not finite" in row["error"] for row in found] == [None, True, True, None]
    assert (
        found[0]["score:m"]
        == found[3]["score:m"]
        == RM.connect(server.url, model="m").score("", pictures(1))[0]
    )
    told = capsys.readouterr().err
    assert "m: 4 requests" in told
    assert "tokens of text beside the prompts" in told
    # A server that is gone ends the run, and so does a wrong key; a pair that is refused every time does not.
    for name, status in {"gone": 503, "key": 401}.items():
        server.answers[:] = [(400, "no"), (status, "later")]
        with pytest.raises(RemoteError, match="4 of 4 pairs"):
            score_table(
                "rows.jsonl", f"{name}.jsonl", "table_judge:judge", device="cpu", workers=0, part_rows=4
            )
    server.answers[:] = [(400, "content policy"), (422, "no"), (400, "no")]
    score_table("rows.jsonl", "refused.jsonl", "table_judge:judge", device="cpu", workers=0, part_rows=4)
    found = [json.loads(line) for line in Path("refused.jsonl").read_text().splitlines()]
    assert [(row["score:m"], bool(row["error"])) for row in found] == [(None, True)] * 4
