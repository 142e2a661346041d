"""What a hostile server sends ends in the target or in one line; a Hub that is away leaves the copy."""

import re

import fsspec
import huggingface_hub.constants
import pytest
from hub_server import serve

import dallegan
from dallegan.commands.hub import Download, download
from dallegan.errors import TransientError, UserError
from dallegan.io import remote

FILES = {"config.json": b"{}", "tokenizer.model": b"pieces", "model.safetensors": bytes(10_000)}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A server with the repository a/b; the cache is tmp_path/hub."""
    with serve() as server:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        server.repositories["a/b"] = dict(FILES)
        yield server


def written(tmp_path):
    return {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    "headers",
    [
        {"ETag": '"{}/outside"'},
        {"ETag": '"../../../outside"'},
        {"ETag": 'W/"../../../outside"'},
        {"ETag": '"."'},
        {"ETag": ""},
        {"X_Linked_Etag": '"{}/outside"'},
        {"X_Repo_Commit": "../../../outside"},
        {"X_Repo_Commit": "{}/outside"},
        {"X_Linked_Size": "-1"},
        {"X_Xet_Hash": "../../outside"},
        {"Content_Disposition": 'attachment; filename="../../../outside"'},
        {"Location": "/etc/passwd"},
        {"X_HF_Warning": "topic; \x1b]0;title\x07"},
    ],
)
def test_nothing_that_a_header_says_is_part_of_a_path(mirror, tmp_path, headers):
    mirror.headers = {name: value.format(tmp_path) for name, value in headers.items()}
    folder = remote.fetch("hf://a/b")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == FILES
    commit = folder.name
    inside = {f"hub/models--a--b/snapshots/{commit}/{name}" for name in FILES}
    assert written(tmp_path) == inside | {"hub/models--a--b/refs/main"}


@pytest.mark.parametrize(
    "sha",
    ["../../../outside", "/outside", "", None, ["a"], {}, 7, "f" * 39, "F" * 40, "f" * 40 + "\n", "f" * 999],
)
def test_a_commit_is_a_hash(mirror, tmp_path, sha):
    mirror.about = {"sha": sha}
    with pytest.raises(UserError, match=r"the server names no commit; is HF_ENDPOINT=http://\S+ a Hub"):
        remote.fetch("hf://a/b")
    assert written(tmp_path) == set()


@pytest.mark.parametrize("name", [*FILES, "about"])
def test_what_never_ends_is_refused(mirror, tmp_path, monkeypatch, name):
    monkeypatch.setattr(remote, "MODEL_FILES", dict.fromkeys(FILES, 10**7))
    mirror.endless = (name,)
    with pytest.raises(UserError, match=r"^hf://a/b.* has more than [\d,]+ bytes, too many for a model$"):
        remote.fetch("hf://a/b")
    assert mirror.sent < 5e7
    assert not any(path.endswith(("part", name)) for path in written(tmp_path))


def test_a_file_without_an_end_is_refused(mirror, tmp_path):
    """A body that a lost connection has cut would stay in the cache."""
    mirror.headers = {"Content_Length": None}
    with pytest.raises(UserError, match=r"config.json: the server does not say where the file ends"):
        remote.fetch("hf://a/b")
    assert written(tmp_path) == set()


def test_a_size_that_no_model_has_is_refused(mirror, tmp_path):
    mirror.headers = {"Content_Length": 10**13}
    with pytest.raises(UserError, match=r"config.json: has more than 1,048,576 bytes"):
        remote.fetch("hf://a/b")
    assert written(tmp_path) == set()


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (500, TransientError, "the Hub answers 500, and there is no copy in the cache"),
        (503, TransientError, "the Hub answers 503, and there is no copy in the cache"),
        (429, TransientError, "the Hub asks to wait (429)"),
        (401, UserError, "not allowed, or no such repository (401)"),
        (403, UserError, "not allowed, or no such repository (403)"),
        (404, UserError, "no such repository or revision, or a private one"),
        (418, UserError, "the Hub answers 418"),
        (302, UserError, "the Hub answers 302"),
    ],
)
def test_the_cause_is_said(mirror, status, kind, said):
    mirror.status = status
    with pytest.raises(UserError, match=rf"^cannot fetch hf://a/b: {re.escape(said)}") as raised:
        remote.fetch("hf://a/b")
    assert type(raised.value) is kind
    assert not re.search(r"[\n\x1b]", str(raised.value))


def test_a_copy_serves_while_the_hub_is_away(mirror, tmp_path, monkeypatch):
    folder = remote.fetch("hf://a/b")
    before = len(mirror.log)
    assert remote.fetch("hf://a/b@main") == folder
    assert len(mirror.log) == before + 1  # nothing is fetched again
    mirror.status = 503
    assert remote.fetch("hf://a/b") == folder
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert remote.fetch("hf://a/b") == folder
    with pytest.raises(
        TransientError, match=r"cannot be reached .OfflineModeIsEnabled.* no copy in the cache$"
    ):
        remote.fetch("hf://a/c")


def test_a_repository_of_something_else_is_refused(mirror):
    del mirror.repositories["a/b"]["tokenizer.model"]
    with pytest.raises(
        UserError, match=r"^cannot fetch hf://a/b: not a model of dallegan: no tokenizer.model in it$"
    ):
        remote.fetch("hf://a/b")


@pytest.mark.parametrize(
    "name", ["../b", "a/../b", "a/b/c", "a/b@../../x", "a/b@/x", "a/b@x/../y", "a/b@.x", "/a", "a b", ""]
)
def test_a_name_leaves_no_folder(mirror, tmp_path, name):
    with pytest.raises(UserError, match=r"the name must be ORG/NAME|no revision has such a name"):
        remote.fetch(f"hf://{name}")
    assert written(tmp_path) == set()


@pytest.mark.parametrize(
    ("page", "name"),
    [
        ("https://huggingface.co/org/name", "hf://org/name"),
        ("https://huggingface.co/org/name/", "hf://org/name"),
        ("http://www.huggingface.co/org/name/tree/main", "hf://org/name@main"),
        ("https://hf.co/org/name/blob/v1.0/model.safetensors", "hf://org/name@v1.0"),
        ("huggingface.co/org/name", "hf://org/name"),
        ("https://hf-mirror.com/org/na-me_2?x=1", "hf://org/na-me_2"),
    ],
)
def test_a_page_of_the_hub_is_called_by_its_name(tmp_path, page, name):
    said = rf"is a page for browsers: the model's name is {re.escape(name)}$"
    with pytest.raises(UserError, match=said):
        dallegan.load(page)
    with pytest.raises(UserError, match=said):
        download(Download(page, tmp_path / "new"))


@pytest.mark.parametrize("name", ["model.safetensors", "best.ckpt", "model.onnx", "a.zip", "b.pt"])
def test_a_file_is_no_model(tmp_path, name):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(
        UserError, match=rf"{name} is a file; a model is a folder with config.json, tokenizer.model"
    ):
        dallegan.load(str(tmp_path / name))


def test_a_bucket_that_sends_more_than_it_says_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bucket = fsspec.filesystem("memory")
    for name, data in FILES.items():
        bucket.pipe_file(f"/liar/{name}", data)
    monkeypatch.setattr(type(bucket), "size", lambda *_: 1)
    with pytest.raises(UserError, match=r"^memory://liar/config.json: has more than 1 bytes"):
        remote.fetch("memory://liar")
    assert written(tmp_path) == set()
