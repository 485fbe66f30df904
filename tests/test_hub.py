"""Downloads, against a loopback server that speaks the hub's file protocol and breaks off on request."""

import contextlib
import hashlib
import itertools
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import CONFIGS, PROMPTS, pictures, small_scorer
from huggingface_hub import constants, utils

import imagereward as RM
from imagereward.checkpoints import hub
from imagereward.checkpoints.registry import REGISTRY, File
from imagereward.errors import CheckpointError, DownloadError
from imagereward.models.vlm.asking.settings import HeadConfig

PAYLOAD = bytes(range(256)) * 64
DAMAGED = PAYLOAD[:-1] + b"\0"  # as long as it should be, so that only its hash tells
NAME = "weights.bin"
REPO = "owner/name"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
VERSION = int(huggingface_hub.__version__.split(".")[0])
PROXIES = ("http_proxy", "https_proxy", "all_proxy")


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Answer(BaseHTTPRequestHandler):
    """HEAD and GET as the hub answers them. HTTP/1.0, so the connection ends with the answer."""

    server: "Server"

    def do_HEAD(self):
        self.answer()

    def do_GET(self):
        content, start = self.answer()
        # Headers promise the whole; a cut ends the connection when the file is sent up to there.
        self.wfile.write(content[start : next(self.server.cuts, None)])

    def answer(self) -> tuple[bytes, int]:
        self.path = self.requestline.split()[1]  # as sent: the base class takes leading slashes together
        span = self.headers.get("Range")
        self.server.requests.append((self.command, self.path, span))
        if self.path in self.server.nonsense:
            self.wfile.write(b"this is no HTTP\r\n\r\n")
            return b"", 0
        if self.path not in self.server.files:
            status, code = self.server.missing
            self.send_response(status)
            self.send_header("Content-Length", "0")
            if code:
                self.send_header("X-Error-Code", code)
            self.end_headers()
            return b"", 0
        content = self.server.files[self.path]
        start = int(span.removeprefix("bytes=").removesuffix("-")) if span else 0
        etag = self.server.etags.get(self.path) or sha256(content)
        self.send_response(206 if span else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.send_header("Accept-Ranges", "bytes")
        if span:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", '"of-the-pointer-file"')
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("X-Linked-Size", str(self.server.sizes.get(self.path, len(content))))
        self.end_headers()
        return content, start

    def log_message(self, *_):
        pass


class Server(ThreadingHTTPServer):
    """Files by path, and what it should do wrong."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Answer)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.files: dict[str, bytes] = {}
        self.etags: dict[str, str] = {}
        self.sizes: dict[str, int] = {}  # X-Linked-Size, where it is not that of the content
        self.nonsense: set[str] = set()
        self.missing = (404, "EntryNotFound")
        self.cuts = iter(())  # one for each GET: where in the file the connection ends
        self.requests: list[tuple[str, str, str | None]] = []
        self.running = threading.Thread(target=self.serve_forever, args=(0.01,))
        self.running.start()

    def put(self, content: bytes, repo: str = REPO, name: str = NAME) -> str:
        path = f"/{repo}/resolve/main/{name}"
        self.files[path] = content
        return path

    def ranges(self) -> list[str | None]:
        """The Range header of every GET so far."""
        return [span for command, _, span in self.requests if command == "GET"]

    def handle_error(self, *_):
        pass  # a client that hangs up early is no news

    def close(self):
        """Afterwards nothing listens on its port."""
        if self.running.is_alive():
            self.shutdown()
            self.running.join()
            self.server_close()


@pytest.fixture
def unproxied(monkeypatch):
    """A proxy for the outside world has no business with the loopback interface."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def server(unproxied):
    with contextlib.closing(Server()) as running:
        yield running


def forget_sessions() -> None:
    # huggingface_hub keeps one session a process; its name for dropping it changed with version 1.
    for name in ("close_session", "reset_sessions"):
        if hasattr(utils, name):
            getattr(utils, name)()


@pytest.fixture
def endpoint(server, monkeypatch, tmp_path):
    """The server as this process's hub, with caches that are empty."""
    monkeypatch.setenv("HF_ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(hub, "CACHE", tmp_path / "original")
    # With telemetry, huggingface_hub asks for more than the file, of the endpoint seen at import.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    forget_sessions()
    yield server
    forget_sessions()


@pytest.fixture
def naps(monkeypatch):
    """The seconds that would have been slept between attempts, instead of sleeping them."""
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def wanted(content: bytes = PAYLOAD, *, repos=(REPO,), url: str | None = None, checked=True) -> File:
    return File(NAME, hub=repos, url=url, sha256=sha256(content) if checked else None)


def from_url(server: Server, path: str = "/" + NAME, checked=True) -> File:
    return wanted(repos=(), url=server.url + path, checked=checked)


def final_files(root: Path) -> list[Path]:
    """What a later call could take for a finished download."""
    blobs = [path for path in root.rglob("blobs/*") if path.suffix != ".incomplete"]
    return [*root.rglob(NAME), *blobs]


def in_new_process(root: Path, call: str, **environment: str) -> subprocess.CompletedProcess:
    """`print(call)` where huggingface_hub is imported under these environment variables."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_")) and name.lower() not in PROXIES
    }
    home = {"HOME": str(root), "USERPROFILE": str(root), "HF_HOME": str(root / "hf")}
    return subprocess.run(
        [
            sys.executable,
            "-c",
            "from imagereward.checkpoints.hub import fetch\n"
            "from imagereward.checkpoints.registry import File\n"
            f"print({call})",
        ],
        cwd=Path(RM.__file__).parents[1],
        env=inherited | home | environment,
        capture_output=True,
        text=True,
        timeout=50,
    )


# From a hub repository.


def test_a_released_file_is_downloaded_once_and_then_needs_no_network(server, tmp_path):
    path = server.put(PAYLOAD)
    first = in_new_process(tmp_path, f"fetch({wanted()})", HF_ENDPOINT=server.url)
    assert first.returncode == 0, first.stderr
    local = Path(first.stdout.strip())
    assert local.read_bytes() == PAYLOAD
    assert tmp_path / "hf" in local.parents
    assert ("GET", path, None) in server.requests
    server.close()
    second = in_new_process(tmp_path, f"fetch({wanted()})", HF_ENDPOINT=server.url)
    assert second.returncode == 0, second.stderr
    assert second.stdout == first.stdout


def test_a_cached_file_is_found_without_a_request(endpoint):
    endpoint.put(PAYLOAD)
    first = hub.fetch(wanted())
    endpoint.requests.clear()
    assert hub.fetch(wanted()) == first
    assert not endpoint.requests


@pytest.mark.parametrize("slash", ["", "/"])
def test_the_endpoint_may_end_in_a_slash(endpoint, monkeypatch, slash):
    # huggingface_hub allows it in HF_ENDPOINT, so people have it there.
    endpoint.put(PAYLOAD)
    monkeypatch.setenv("HF_ENDPOINT", endpoint.url + slash)
    assert hub.fetch(wanted()).read_bytes() == PAYLOAD


@pytest.mark.parametrize(
    "missing",
    [(404, "EntryNotFound"), (404, "RepoNotFound"), (401, "RepoNotFound"), (404, None)],
    ids=["no such file", "no such repository", "hidden repository", "a mirror's plain 404"],
)
def test_a_repository_without_the_file_falls_through_to_the_next(endpoint, missing):
    (released,) = REGISTRY["ImageReward-v1.0"].files
    assert released.hub == ("zai-org/ImageReward", "THUDM/ImageReward")
    path = endpoint.put(PAYLOAD, "THUDM/ImageReward", released.name)
    endpoint.missing = missing
    local = hub.fetch(replace(released, sha256=sha256(PAYLOAD)))
    assert local.read_bytes() == PAYLOAD
    asked = list(dict.fromkeys(path for _, path, _ in endpoint.requests))
    assert asked == ["/zai-org/ImageReward/resolve/main/ImageReward.pt", path]


def test_a_file_that_no_repository_has_names_them_all(endpoint):
    with pytest.raises(DownloadError, match=r"(?s)a/first/weights\.bin.*b/second/weights\.bin"):
        hub.fetch(wanted(repos=("a/first", "b/second")))


@pytest.mark.parametrize("root", [None, "mine"], ids=["cache", "download_root"])
def test_a_wrong_hash_is_refused_and_the_next_call_downloads_anew(endpoint, tmp_path, root):
    root = root and tmp_path / root
    path = endpoint.put(DAMAGED)
    endpoint.etags[path] = sha256(PAYLOAD)  # damaged behind the hub's back
    with pytest.raises(DownloadError) as caught:
        hub.fetch(wanted(), root)
    assert sha256(PAYLOAD) in str(caught.value)
    assert sha256(DAMAGED) in str(caught.value)
    assert not final_files(tmp_path)
    endpoint.put(PAYLOAD)
    assert hub.fetch(wanted(), root).read_bytes() == PAYLOAD


def test_a_wrong_hash_falls_through_to_the_next_repository(endpoint):
    endpoint.put(DAMAGED, "a/first")
    endpoint.put(PAYLOAD, "b/second")
    assert hub.fetch(wanted(repos=("a/first", "b/second"))).read_bytes() == PAYLOAD


@pytest.mark.parametrize("checked", [True, False], ids=["with a hash", "without"])
@pytest.mark.parametrize("root", [None, "mine"], ids=["cache", "download_root"])
def test_a_connection_that_always_breaks_off_is_refused(endpoint, naps, tmp_path, root, checked):
    endpoint.put(PAYLOAD)
    endpoint.cuts = itertools.repeat(len(PAYLOAD) // 2)
    with pytest.raises(DownloadError, match=NAME):
        hub.fetch(wanted(checked=checked), root and tmp_path / root)
    assert not final_files(tmp_path)
    assert sum(naps) < 60


def test_a_body_shorter_than_the_hub_says_is_refused(endpoint, naps, tmp_path):
    # A proxy that cuts a body may well correct its Content-Length, so that nothing looks broken off.
    path = endpoint.put(PAYLOAD[:5000])
    endpoint.sizes[path] = len(PAYLOAD)
    with pytest.raises(DownloadError, match="should be of size"):
        hub.fetch(wanted(checked=False))
    assert not final_files(tmp_path)


def test_a_download_that_breaks_off_is_resumed(endpoint, naps, monkeypatch):
    # What counts as received is whole chunks; of 10 MB, unless said otherwise.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    endpoint.put(PAYLOAD)
    endpoint.cuts = iter([5000, 9000])
    # Whether one call goes on by itself or it takes another is up to the version of huggingface_hub.
    for _ in range(3):
        with contextlib.suppress(DownloadError):
            local = hub.fetch(wanted())
            break
    assert local.read_bytes() == PAYLOAD
    assert endpoint.ranges() == [None, "bytes=5000-", "bytes=9000-"]


@pytest.mark.skipif(VERSION < 2, reason="older versions take another call")
def test_a_download_that_breaks_off_is_resumed_within_the_call(endpoint, naps, monkeypatch):
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    endpoint.put(PAYLOAD)
    endpoint.cuts = iter([5000])
    assert hub.fetch(wanted()).read_bytes() == PAYLOAD
    assert endpoint.ranges() == [None, "bytes=5000-"]


def test_a_download_given_up_is_whole_after_the_next_call(endpoint, naps):
    endpoint.put(PAYLOAD)
    endpoint.cuts = itertools.repeat(5000)
    with pytest.raises(DownloadError):
        hub.fetch(wanted())
    endpoint.cuts = iter(())
    assert hub.fetch(wanted()).read_bytes() == PAYLOAD


# Without a network.


def test_a_server_that_is_not_there_is_reported_in_bounded_time(endpoint, naps):
    (released,) = REGISTRY["ImageReward-v1.0"].files
    endpoint.close()
    with pytest.raises(DownloadError) as caught:
        hub.fetch(replace(released, url=endpoint.url + "/" + released.name))
    assert sum(naps) < 60
    message = str(caught.value)
    assert all(f"{repo}/{released.name}" in message for repo in released.hub)
    assert f"{endpoint.url}/{released.name}" in message
    assert str(hub.CACHE / released.name) in message
    assert "download_root=" in message


def test_offline_mode_makes_no_request(endpoint, monkeypatch):
    endpoint.put(PAYLOAD)
    endpoint.files["/" + NAME] = PAYLOAD
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    forget_sessions()
    with pytest.raises(DownloadError, match="not tried, offline"):
        hub.fetch(wanted(url=f"{endpoint.url}/{NAME}"))
    assert not endpoint.requests


def test_local_files_only_asks_for_no_file(endpoint):
    endpoint.put(PAYLOAD)
    endpoint.files["/" + NAME] = PAYLOAD
    with pytest.raises(DownloadError, match="not tried, offline"):
        hub.fetch(wanted(url=f"{endpoint.url}/{NAME}"), local_files_only=True)
    assert not endpoint.requests


def test_offline_mode_in_the_environment_makes_no_request(server, tmp_path):
    server.put(PAYLOAD)
    done = in_new_process(tmp_path, f"fetch({wanted()})", HF_ENDPOINT=server.url, HF_HUB_OFFLINE="1")
    assert "DownloadError" in done.stderr
    assert not server.requests


def test_local_files_only_makes_no_request_of_any_kind(server, tmp_path):
    # In a process of its own: huggingface_hub asks the endpoint who may be calling, once a process.
    server.put(PAYLOAD)
    done = in_new_process(tmp_path, f"fetch({wanted()}, local_files_only=True)", HF_ENDPOINT=server.url)
    assert "DownloadError" in done.stderr
    assert not server.requests


@pytest.mark.parametrize("local_files_only", [False, True])
def test_a_cached_file_is_used_offline(endpoint, monkeypatch, local_files_only):
    endpoint.put(PAYLOAD)
    first = hub.fetch(wanted())
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", not local_files_only)
    forget_sessions()
    endpoint.requests.clear()
    assert hub.fetch(wanted(), local_files_only=local_files_only) == first
    assert not endpoint.requests


# Files that were there already.


def test_a_file_put_there_is_checked_again_when_it_changes(endpoint, tmp_path):
    (tmp_path / NAME).write_bytes(PAYLOAD)
    assert hub.fetch(wanted(), tmp_path) == tmp_path / NAME
    assert hub.fetch(wanted(), tmp_path) == tmp_path / NAME  # by what is noted of it
    status = (tmp_path / NAME).stat()
    (tmp_path / NAME).write_bytes(DAMAGED)
    os.utime(tmp_path / NAME, ns=(status.st_atime_ns, status.st_mtime_ns))  # as long, and of the same time
    with pytest.raises(CheckpointError, match=sha256(DAMAGED)):
        hub.fetch(wanted(), tmp_path)
    assert (tmp_path / NAME).read_bytes() == DAMAGED  # it is the user's, and stays
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / NAME).write_bytes(DAMAGED)
    with pytest.raises(CheckpointError):
        hub.fetch(wanted(), tmp_path / "other")


def test_a_file_that_no_hash_can_tell_is_taken_by_its_name_with_a_warning(endpoint, tmp_path):
    (tmp_path / NAME).write_bytes(DAMAGED)
    with pytest.warns(UserWarning, match=r"weights\.bin is taken for the released .* by its name alone"):
        assert hub.fetch(wanted(checked=False), tmp_path) == tmp_path / NAME


def test_what_was_downloaded_here_needs_no_warning_until_it_changes(endpoint, tmp_path):
    endpoint.put(PAYLOAD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            local = hub.fetch(wanted(checked=False), tmp_path / "mine")
    local.write_bytes(DAMAGED)
    with pytest.warns(UserWarning, match="by its name alone"):
        hub.fetch(wanted(checked=False), tmp_path / "mine")


# Into a directory of the caller's choice.


@pytest.mark.parametrize("as_type", [str, Path])
def test_download_root_receives_the_file(endpoint, tmp_path, as_type):
    endpoint.put(PAYLOAD)
    root = tmp_path / "new" / "mine"
    local = hub.fetch(wanted(), as_type(root))
    assert local.resolve() == (root / NAME).resolve()
    assert local.read_bytes() == PAYLOAD
    endpoint.requests.clear()
    assert hub.fetch(wanted(), root).read_bytes() == PAYLOAD
    assert not endpoint.requests


def test_download_root_receives_a_file_that_is_reached_by_url(endpoint, tmp_path):
    endpoint.files["/" + NAME] = PAYLOAD
    assert hub.fetch(from_url(endpoint), tmp_path / "mine") == tmp_path / "mine" / NAME
    assert (tmp_path / "mine" / NAME).read_bytes() == PAYLOAD


@pytest.mark.parametrize("root", [None, "mine"], ids=["the original's cache", "download_root"])
def test_a_file_put_there_by_hand_is_used_without_a_request(endpoint, tmp_path, root):
    root = root and tmp_path / root
    where = root or hub.CACHE
    where.mkdir()
    (where / NAME).write_bytes(PAYLOAD)
    assert hub.fetch(wanted(url=endpoint.url), root) == where / NAME
    assert not endpoint.requests


# From a url.


def test_a_file_is_downloaded_from_its_url_once(endpoint):
    endpoint.files["/" + NAME] = PAYLOAD
    local = hub.fetch(from_url(endpoint))
    assert local == hub.CACHE / NAME
    assert local.read_bytes() == PAYLOAD
    assert hub.fetch(from_url(endpoint)) == local
    assert endpoint.requests == [("GET", "/" + NAME, None)]
    assert [path for path in hub.CACHE.iterdir() if path.name != ".verified"] == [local]


def test_a_file_with_a_url_alone_is_downloaded_in_a_new_process(server, tmp_path):
    # Where nothing has imported the parts of huggingface_hub, which it imports on first use.
    server.files["/" + NAME] = PAYLOAD
    done = in_new_process(tmp_path, f"fetch({from_url(server)}, {str(tmp_path)!r})", HF_ENDPOINT=server.url)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / NAME).read_bytes() == PAYLOAD


def test_the_url_is_tried_after_the_repositories(endpoint):
    endpoint.files["/" + NAME] = PAYLOAD
    assert hub.fetch(wanted(url=f"{endpoint.url}/{NAME}")).read_bytes() == PAYLOAD
    assert endpoint.requests[0][1] == f"/{REPO}/resolve/main/{NAME}"


def test_a_url_that_is_not_found_is_named(endpoint):
    with pytest.raises(DownloadError, match=rf"{endpoint.url}/{NAME}.*404"):
        hub.fetch(from_url(endpoint))
    assert not any(hub.CACHE.iterdir())


def test_a_url_that_does_not_answer_in_http_is_a_download_error(endpoint):
    endpoint.nonsense.add("/" + NAME)
    with pytest.raises(DownloadError, match=f"{endpoint.url}/{NAME}"):
        hub.fetch(from_url(endpoint))


@pytest.mark.parametrize("checked", [True, False], ids=["with a hash", "without"])
def test_a_truncated_body_from_a_url_is_refused(endpoint, checked):
    # Not every registered file has a hash (BLIP's has none); the Content-Length must do.
    endpoint.files["/" + NAME] = PAYLOAD
    endpoint.cuts = iter([5000])
    with pytest.raises(DownloadError, match=NAME):
        hub.fetch(from_url(endpoint, checked=checked))
    assert not any(hub.CACHE.iterdir())
    assert hub.fetch(from_url(endpoint, checked=checked)).read_bytes() == PAYLOAD


def test_a_wrong_hash_from_a_url_is_refused(endpoint):
    endpoint.files["/" + NAME] = DAMAGED
    with pytest.raises(DownloadError) as caught:
        hub.fetch(from_url(endpoint))
    assert sha256(PAYLOAD) in str(caught.value)
    assert sha256(DAMAGED) in str(caught.value)
    assert not any(hub.CACHE.iterdir())
    endpoint.files["/" + NAME] = PAYLOAD
    assert hub.fetch(from_url(endpoint)).read_bytes() == PAYLOAD


def test_a_file_from_a_url_bears_its_final_name_only_once_it_is_verified(endpoint, monkeypatch):
    # Files that are there are taken as they are, so what a killed check leaves would be used for good.
    def killed(_):
        raise KeyboardInterrupt

    endpoint.files["/" + NAME] = DAMAGED
    monkeypatch.setattr(hub, "sha256_of", killed)
    with pytest.raises(KeyboardInterrupt):
        hub.fetch(from_url(endpoint))
    assert not (hub.CACHE / NAME).exists()


def test_a_file_of_the_hub_cache_is_used_only_once_it_is_verified(endpoint, monkeypatch):
    def killed(_):
        raise KeyboardInterrupt

    endpoint.put(DAMAGED)
    with monkeypatch.context() as patch:
        patch.setattr(hub, "sha256_of", killed)
        with pytest.raises(KeyboardInterrupt):
            hub.fetch(wanted())
    with pytest.raises(DownloadError, match="expected"):
        hub.fetch(wanted())
    endpoint.put(PAYLOAD)
    assert hub.fetch(wanted()).read_bytes() == PAYLOAD
    monkeypatch.setattr(hub, "sha256_of", killed)  # verified once, it is not hashed again
    assert hub.fetch(wanted()).read_bytes() == PAYLOAD


def test_download_root_holds_the_file_only_once_it_is_verified(endpoint, tmp_path, monkeypatch):
    endpoint.put(DAMAGED)
    monkeypatch.setattr(hub, "sha256_of", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        hub.fetch(wanted(), tmp_path / "root")
    assert not any((tmp_path / "root").iterdir())


# Through load().


def test_a_saved_scorer_loads_by_hub_id_and_again_without_the_server(endpoint, naps, tmp_path):
    saved = small_scorer("ImageReward")
    for path in saved.save_pretrained(tmp_path / "saved").iterdir():
        endpoint.put(path.read_bytes(), "me/tiny-reward", path.name)
    images = pictures(3)
    expected = saved.score(PROMPTS[0], images)
    loaded = RM.load("me/tiny-reward", "cpu")
    assert loaded.name == "me/tiny-reward"
    assert loaded.score(PROMPTS[0], images) == expected
    endpoint.close()
    assert RM.load("me/tiny-reward", "cpu").score(PROMPTS[0], images) == expected


def test_a_released_scorer_loads_by_name(endpoint, monkeypatch, tmp_path):
    small = small_scorer("ImageReward")
    entry = REGISTRY["ImageReward-v1.0"]
    (released,) = entry.files
    torch.save(small.state_dict(), tmp_path / "small.pt")
    content = (tmp_path / "small.pt").read_bytes()
    endpoint.put(content, released.hub[1], released.name)
    files = (replace(released, sha256=sha256(content)),)
    entry = replace(entry, config=CONFIGS["ImageReward"], files=files)
    monkeypatch.setitem(REGISTRY, "ImageReward-v1.0", entry)
    images = pictures(3)
    loaded = RM.load("ImageReward-v1.0", "cpu", tmp_path / "mine")
    assert loaded.score(PROMPTS[0], images) == small.score(PROMPTS[0], images)
    assert (tmp_path / "mine" / released.name).is_file()


def test_a_hub_id_that_does_not_exist_is_a_download_error(endpoint):
    endpoint.missing = (401, "RepoNotFound")
    with pytest.raises(DownloadError, match="me/no-such-reward"):
        RM.load("me/no-such-reward", "cpu")


def test_a_hub_id_that_is_not_cached_is_a_download_error_with_local_files_only(endpoint):
    with pytest.raises(DownloadError, match="me/tiny-reward"):
        RM.load("me/tiny-reward", "cpu", local_files_only=True)
    assert not endpoint.requests


def test_a_judge_that_was_pushed_is_loaded_by_its_hub_id(endpoint, tiny_vlm, tmp_path):
    head = HeadConfig((8,), 1)
    judge = RM.load(f"vqa:{tiny_vlm()}", "cpu", readout="head", template="preference", head=head)
    saved = judge.save_pretrained(tmp_path / "saved")
    names = [path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()]
    tree = []
    for name in names:
        content = (saved / name).read_bytes()
        endpoint.put(content, name=name)
        endpoint.files[f"/{REPO}/resolve/{COMMIT}/{name}"] = content
        tree.append({"type": "file", "path": name, "size": len(content), "oid": sha256(content)})
    listed = {"id": REPO, "sha": COMMIT, "siblings": [{"rfilename": name} for name in names]}
    endpoint.files[f"/api/models/{REPO}/revision/main"] = json.dumps(listed).encode()
    # Newer versions of huggingface_hub ask for the tree.
    endpoint.files[f"/api/models/{REPO}/tree/{COMMIT}?recursive=true&expand=false"] = json.dumps(
        tree
    ).encode()
    found = RM.load(REPO, "cpu")
    assert found.name == REPO
    assert found.score("a", pictures(2)) == judge.score("a", pictures(2))
    endpoint.close()
    assert RM.load(REPO, "cpu", local_files_only=True).score("a", pictures(2)) == judge.score(
        "a", pictures(2)
    )
