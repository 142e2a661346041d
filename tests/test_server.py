"""What the demo's server answers to whom, asked over real connections."""

import contextlib
import json
import os
import socket
import threading
import time
import warnings

import httpx
import pytest

from dallegan.__main__ import main
from dallegan.commands.demo import Page, Studio, import_gradio

NAME = "pictures.example.org"  # of a reverse proxy


@contextlib.contextmanager
def served(model, folder, host="127.0.0.1"):
    """Yields the port of a server that runs in a thread."""
    gradio = import_gradio()
    from dallegan.commands import server

    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    bound = server.listen(host, 0)
    page = Page(gradio, Studio(model, folder)).build("a`b\n<script>")
    running = server.make_server(gradio, page, folder, server.hosts_of(host, bound), [NAME])
    thread = threading.Thread(target=running.run, args=([bound],))
    thread.start()
    try:
        yield bound.getsockname()[1]
    finally:
        running.should_exit = True
        thread.join(20)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(model, tmp_path_factory):
    with served(model, tmp_path_factory.mktemp("page").resolve()) as port:
        yield port


@pytest.fixture
def web(port):
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
        yield client


def call(web, data, name="draw", **more):
    """Sends a call as curl does. Returns the last event and its data."""
    body = json.dumps({"data": data, **more})  # httpx refuses lone surrogates
    asked = web.post(f"/gradio_api/call/{name}", content=body, headers={"Content-Type": "application/json"})
    asked.raise_for_status()
    answer = web.get(f"/gradio_api/call/{name}/{asked.json()['event_id']}").text
    event, line = answer.strip().splitlines()[-2:]
    return event.removeprefix("event: "), json.loads(line.removeprefix("data: "))


def test_the_page_and_its_calls_are_answered(web):
    page = web.get("/")
    assert page.status_code == 200
    assert "<script>\\u0060" not in page.text
    for path in ("/config", "/theme.css", "/gradio_api/info"):
        assert web.get(path).status_code == 200, path
    event, (gallery, sheet, took) = call(web, ["a red car", 2, 0, 1, 1])
    assert event == "complete"
    assert took.startswith("2 drawn in")
    for file in (gallery[0]["image"], sheet):
        assert web.get(file["url"]).content[:4] == b"\x89PNG"
    (draw,) = (fn["id"] for fn in web.get("/config").json()["dependencies"] if fn["api_name"] == "draw")
    session = {"session_hash": "abc", "fn_index": draw, "trigger_id": 1, "event_data": None}
    joined = web.post("/gradio_api/queue/join", json={"data": ["a cat", 1, 0, 1, 1], **session})
    assert "event_id" in joined.json()
    with web.stream("GET", "/gradio_api/queue/data?session_hash=abc") as events:
        assert any('"success":true' in line for line in events.iter_lines())


def test_examples_pass_the_queue_by_and_drawing_does_not(web):
    post = lambda data, index: web.post("/gradio_api/run/predict", json={"data": data, "fn_index": index})
    assert post([1], 0).json()["data"][0]["value"] == "a big brown bear standing in the snow"
    assert post(["a cat", 16, 0, 1, 8], 1).status_code == 404
    assert post(["one"], 0).status_code == 422


def routes_of(router):
    """Yields method and path of all routes."""
    for route in router.routes:
        if included := getattr(route, "original_router", None):  # newer versions of fastapi nest them
            yield from routes_of(included)
        else:
            yield from ((method, route.path) for method in getattr(route, "methods", None) or ())


def test_every_other_route_of_gradio_is_closed(web):
    """Each route of the installed version is asked with each method that it has."""
    gradio = import_gradio()
    with gradio.Blocks() as blocks:
        gradio.Textbox()
    routes = list(routes_of(gradio.routes.App.create_app(blocks)))
    assert len(routes) > 60
    assert ("POST", "/gradio_api/upload") in routes
    opened = set()
    for method, path in routes:
        filled = (
            path.replace("{path:path}", "x").replace("{session_hash}", "a b").replace("{api_name}", "draw")
        )
        asked = web.request(method, filled, content=b"x" * 10)
        if asked.status_code not in (404, 405):
            opened.add((method, path))
    posts = {path for method, path in opened if method == "POST"}
    assert posts == {"/gradio_api/call/{api_name}", "/gradio_api/queue/join"}
    reads = {path.split("/")[1] for method, path in opened if method != "POST"}
    assert reads <= {"", "config", "theme.css", "favicon.ico", "assets", "static", "svelte", "gradio_api"}
    apis = {path.split("/")[2] for _, path in opened if path.startswith("/gradio_api/")}
    assert apis <= {"call", "queue", "info", "heartbeat"}


@pytest.mark.parametrize(
    "path",
    [
        "upload",
        "upload/",
        "upload?upload_id=1",
        "/upload",
        "../gradio_api/upload",
        "component_server",
        "UPLOAD",
    ],
)
def test_no_file_is_taken(web, path):
    files = [("files", (f"{i}.bin", b"x")) for i in range(50)]
    assert web.post(f"/gradio_api/{path}", files=files).status_code in (404, 405)


@pytest.mark.parametrize(
    "path",
    [
        "/monitoring",
        "/monitoring/summary",
        "/gradio_api/file=/etc/passwd",
        "/gradio_api/file=http://127.0.0.1:1/x",
        "/gradio_api/file=https://example.com/",
        "/gradio_api/proxy=https://example.hf.space/",
        "/gradio_api/heartbeat/a%0ab",
        "/gradio_api/runs",
        "/docs",
        "/openapi.json",
        "/logout",
        "/\x1b[2J",
    ],
)
def test_no_other_page_is_shown(web, path):
    assert web.get(path.replace("\x1b", "%1b")).status_code == 404


def test_no_path_leads_out_of_the_folder(web):
    _, (gallery, _, _) = call(web, ["a red car", 1, 0, 1, 1])
    inside = gallery[0]["image"]["path"].rpartition("/")[0]
    for path in ("%2e%2e/" * 20 + "etc/passwd", "..%2f" * 20 + "etc/passwd"):
        assert web.get(f"/gradio_api/file={inside}/{path}").status_code in (403, 404)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "localhost:{port}", "Origin": "http://localhost:{port}"}, 200),
        ({"Host": "LOCALHOST"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Host": NAME, "Origin": f"https://{NAME}"}, 200),  # a proxy that keeps Host
        ({"Origin": f"https://{NAME}:8443"}, 200),  # a proxy that does not
        ({"Host": "evil.example"}, 403),  # DNS rebinding
        ({"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, 403),
        ({"Host": "localhost.evil.example"}, 403),
        ({"Host": f"evil.{NAME}"}, 403),
        ({"Host": "10.1.2.3"}, 403),
        ({"Host": ""}, 403),
        ({"Host": "[::1"}, 403),
        ({"Host": "localhost@evil.example"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://localhost:1"}, 403),  # another program of this machine
        ({"Origin": "null"}, 403),
        ({"Origin": f"http://{NAME}.evil.example"}, 403),
    ],
)
def test_host_and_origin_are_known(web, port, headers, status):
    filled = {name: value.replace("{port}", str(port)) for name, value in headers.items()}
    answers = [
        web.get("/config", headers=filled),
        web.post("/gradio_api/call/draw", json={"data": [""] * 5}, headers=filled),
    ]
    assert [answer.status_code for answer in answers] == [status, status]
    assert status == 200 or ("--names" in answers[0].text) == (headers.get("Origin") != "null")


def test_on_all_interfaces_any_address_is_known_but_no_strange_name(model, tmp_path):
    with served(model, tmp_path.resolve(), "0.0.0.0") as port:
        get = lambda host: httpx.get(f"http://127.0.0.1:{port}/config", headers={"Host": host}).status_code
        assert [get(host) for host in ("192.168.1.5:80", socket.gethostname(), "[fe80::1]", NAME)] == [
            200
        ] * 4
        assert [get(host) for host in ("evil.example", "1.2.3.4.evil.example", "")] == [403] * 3


WRONG = [
    ["a cat", "four", 0, 1, 1],
    ["a cat", 4, None, 1, 1],
    ["a cat", 4, 0, "NaN", 1],
    ["a cat", 1e308, 0, 1, 1],
    ["a cat", 10**300, 0, 1, 1],
    [None, 4, 0, 1, 1],
    [7, 4, 0, 1, 1],
    [True, 4, 0, 1, 1],
    ["\x1b[2J", 4, 0, 1, 1],
    ["a\x00b", 4, 0, 1, 1],
    ["\ud800", 4, 0, 1, 1],
    ["a cat", "<img src=x onerror=alert(1)>", 0, 1, 1],
]


@pytest.mark.parametrize("data", WRONG, ids=ascii)
def test_wrong_values_are_refused_with_a_line(web, data, capfd):
    event, said = call(web, data)
    assert event == "error"
    assert "\n" not in said["error"]
    assert "<" not in said["error"]
    assert capfd.readouterr().err == ""


DEEP = b'{"data": ' + b"[" * 8000 + b"]" * 8000 + b"}"
BODIES = {
    "nothing": b"",
    "no json": b"data=1",
    "null": b"null",
    "list": b"[]",
    "bytes": b"\xff\xfe\x00",
    "deep": b"[" * 16000,
    "deep in the data": DEEP,
    "huge": b'{"data": ["' + b"a" * 10**7 + b'"]}',
    "no data": b'{"fn_index": 1}',
    "too few": b'{"data": ["a cat"], "fn_index": 1, "session_hash": "s"}',
    "too many": b'{"data": [1, 2, 3, 4, 5, 6, 7, 8, 9], "fn_index": 1, "session_hash": "s"}',
    "a file": b'{"data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, 4, 0, 1, 1],'
    b' "fn_index": 1, "session_hash": "s"}',
    "example as text": b'{"data": ["x"], "fn_index": 0, "session_hash": "s"}',
    "no such example": b'{"data": [99], "fn_index": 0, "session_hash": "s"}',
    "no function": b'{"data": [], "fn_index": 999, "session_hash": "s"}',
    "function as text": b'{"data": [], "fn_index": "0", "session_hash": "s"}',
    "function as list": b'{"data": [], "fn_index": [0], "session_hash": "s"}',
    "session as number": b'{"data": ["a", 1, 0, 1, 1], "fn_index": 1, "session_hash": 7}',
    "no session": b'{"data": ["a", 1, 0, 1, 1], "fn_index": 1}',
    "trigger as text": b'{"data": ["a", 1, 0, 1, 1], "fn_index": 1, "session_hash": "s", "trigger_id": "x"}',
}


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_wrong_bodies_are_refused_with_a_line(web, body, capfd):
    for path in ("/gradio_api/queue/join", "/gradio_api/call/blend", "/gradio_api/call/nothing"):
        answer = web.post(path, content=body, headers={"Content-Type": "application/json"})
        assert answer.status_code in (400, 413, 422)
        assert len(answer.text) < 600
    assert capfd.readouterr().err == ""


def test_what_fails_inside_gradio_is_one_line(web, capfd):
    with warnings.catch_warnings(), contextlib.suppress(httpx.HTTPError):
        warnings.simplefilter("ignore")
        web.get("/gradio_api/queue/data?session_hash=nobody")
        web.get("/gradio_api/call/draw/nothing")
    assert "Traceback" not in capfd.readouterr().err


def test_a_bad_head_ends_the_connection_quietly(port, capfd):
    for head in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02",
        b"GET /" + b"a" * 10**6,
        b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
    ):
        with socket.create_connection(("127.0.0.1", port)) as client, contextlib.suppress(OSError):
            client.sendall(head)
            client.settimeout(5)
            answer = client.recv(1000)
            assert answer[:12] in (b"HTTP/1.1 400", b"HTTP/1.1 403"), answer
    assert capfd.readouterr().err == ""


def test_many_visitors_at_once_are_told_that_it_is_busy(web):
    """The queue is bounded; each refused request says so, and the page lives on."""
    asked = [web.post("/gradio_api/call/draw", json={"data": [f"cat {i}", 16, i, 1, 8]}) for i in range(80)]
    assert {answer.status_code for answer in asked} == {200, 503}
    ends = time.monotonic() + 60
    while web.post("/gradio_api/call/draw", json={"data": ["", 1, 0, 1, 1]}).status_code == 503:
        assert time.monotonic() < ends
        time.sleep(0.2)


@pytest.mark.parametrize(
    ("host", "said"),
    [
        ("http://localhost", "--host http://localhost: not known here; give a name or an address"),
        ("localhost:7860", "--host localhost:7860: not known here"),
        ("no-such-host.invalid", "--host no-such-host.invalid: not known here"),
        ("a" * 300, "not known here"),
        ("\x1b[2J", "not known here"),
        ("a\x00b", "not known here"),
        (
            "192.0.2.1",
            "cannot serve on 192.0.2.1, port 7860: Cannot assign requested address; 127.0.0.1 serves",
        ),
    ],
)
def test_a_host_that_cannot_be_bound(host, said, capsys):
    assert main(["demo", "--host", host]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def test_a_port_that_cannot_be_bound(port, capsys):
    assert main(["demo", "--port", str(port)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert (
        line
        == f"error: cannot serve on 127.0.0.1, port {port}: Address already in use; choose another --port"
    )
