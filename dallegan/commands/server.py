"""The demo's web server: gradio behind a gate, as gradio alone takes files and answers any site's pages."""

import errno
import ipaddress
import json
import os
import pathlib
import re
import socket
import urllib.parse
import warnings
from collections.abc import Collection
from typing import Any

import fastapi
import uvicorn
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dallegan.errors import UserError
from dallegan.io.files import parse_object
from dallegan.io.text import shown

MAX_BODY = 2**14  # bytes; a request holds two captions of at most 300 characters
MAX_CONNECTIONS = 512  # at once; a visitor has up to eight
# what the page and gradio's clients ask for, beside the files of answers; gradio has some 70 routes more
GET = re.compile(
    r"/((config|theme\.css|favicon\.ico|(assets|static|svelte)/.*)?"
    r"|gradio_api/(info|heartbeat/\w+|queue/data|call/\w+/\w+))"
)
POST = re.compile(r"/gradio_api/(queue/join|run/predict|call/(\w+))")
HINTS = {
    errno.EADDRINUSE: "choose another --port",
    errno.EACCES: "ports below 1024 belong to the system; choose another --port",
    errno.EADDRNOTAVAIL: "127.0.0.1 serves this machine alone, 0.0.0.0 all that reach it",
}


def listen(host: str, port: int) -> socket.socket:
    """Returns a socket that listens. Raises UserError if the system refuses it."""
    try:
        found = min(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))  # IPv4 comes before IPv6
        return socket.create_server(found[4][:2], family=found[0])
    except (socket.gaierror, UnicodeError):
        how = "give a name or an address, such as 127.0.0.1 or 0.0.0.0, without http:// and port"
        raise UserError(f"--host {host}: not known here; {how}") from None
    except OSError as error:
        hint = HINTS.get(error.errno or 0, "choose another --host or --port")
        said = os.strerror(error.errno or 0)
        raise UserError(f"cannot serve on {host}, port {port}: {said}; {hint}") from None


def hosts_of(host: str, bound: socket.socket) -> set[str]:
    """Returns the names under which visitors reach a socket that was bound by the name `host`."""
    address = ipaddress.ip_address(bound.getsockname()[0])
    own = {"localhost", "127.0.0.1", "::1"} if address.is_loopback or address.is_unspecified else set()
    name = socket.gethostname().lower()
    return {host.lower(), str(address), *own, *({name, f"{name}.local"} if address.is_unspecified else ())}


def make_server(
    gradio: Any, page: Any, folder: pathlib.Path, hosts: set[str], names: Collection[str], **style: Any
) -> uvicorn.Server:
    """Returns the server of `page`, a gradio.Blocks, which shows files of `folder`.

    `hosts` is what was bound, `names` has other names under which visitors reach the page, and `style` goes
    to `gradio.mount_gradio_app`.
    """
    app = fastapi.FastAPI(openapi_url=None)
    options = {"run_history": False, "enable_monitoring": False, "show_error": False, "ssr_mode": False}
    gradio.mount_gradio_app(app, page, "/", footer_links=[], **options, **style)
    gate = Gate(app, page, f"/gradio_api/file={folder}/", hosts, {name.lower() for name in names})
    limits: dict[str, Any] = {"limit_concurrency": MAX_CONNECTIONS, "timeout_graceful_shutdown": 1}
    return uvicorn.Server(uvicorn.Config(gate, http="h11", ws="none", log_level="critical", **limits))


def host_in(address: str) -> str:
    """Returns the host of a Host or Origin header, in lower case; "" if there is none."""
    try:
        return urllib.parse.urlsplit(address if "//" in address else f"//{address}").hostname or ""
    except ValueError:
        return ""


class Gate:
    """Passes on the requests that the page makes, and refuses all others with a line of text.

    A stranger's site may point its name here (DNS rebinding), so that Host must be a known name. Its pages
    may also send requests here, so that Origin must be the same.
    """

    def __init__(self, app: ASGIApp, page: Any, files: str, hosts: set[str], names: set[str]) -> None:
        self.app, self.page, self.files = app, page, files
        self.hosts, self.names = hosts | names, names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers a request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        try:
            self._check_sender(Request(scope))
            bodies = await self._check_request(Request(scope, receive))
        except HTTPException as refused:
            return await PlainTextResponse(f"{refused.detail}\n", refused.status_code)(scope, receive, send)

        async def rest() -> Message:
            return {"type": "http.request", "body": bodies.pop()} if bodies else await receive()

        try:
            await self.app(scope, rest, send)
        except Exception as error:  # the client has its answer; a traceback would fill the console
            warnings.warn(f"a request to the page failed: {type(error).__name__}", stacklevel=1)

    def _check_sender(self, request: Request) -> None:
        """Raises HTTPException if a browser sends the request for another site."""
        host, origin = (request.headers.get(name, "").lower() for name in ("host", "origin"))
        name, site = host_in(host), host_in(origin)
        any_address = not self.hosts.isdisjoint(("0.0.0.0", "::"))  # an address cannot be rebound
        if name not in self.hosts and not (any_address and re.fullmatch(r"[\d.]+|.*:.*", name)):
            raise HTTPException(403, f"no page of {shown(name)!r}; if it is yours: --names {shown(name)}")
        if origin and origin.partition("//")[2] != host and site not in self.names:
            hint = f"; if it is yours: --names {shown(site)}" * (
                "//" in origin
            )  # sandboxed frames say "null"
            raise HTTPException(403, f"not for {shown(origin)!r}{hint}")

    async def _check_request(self, request: Request) -> list[bytes]:
        """Returns the body to pass on, if any. Raises HTTPException if the page asks no such thing."""
        path = request.scope["path"]  # decoded
        if request.method in ("GET", "HEAD") and (GET.fullmatch(path) or path.startswith(self.files)):
            return []
        if request.method != "POST" or not (called := POST.fullmatch(path)):
            raise HTTPException(404, "not found")
        body = b""
        async for part in request.stream():
            body += part
            if len(body) > MAX_BODY:
                raise HTTPException(413, f"more than {MAX_BODY} bytes")
        try:  # all that would fail in gradio, which prints tracebacks
            call, functions = parse_object(body), self.page.fns
            named = [function for function in functions.values() if function.api_name == called[2]]
            function = named[0] if called[2] else functions[call["fn_index"]]
            for block, value in zip(function.inputs, call["data"], strict=True):
                if isinstance(value, dict | list):
                    raise TypeError
                if function.preprocess:
                    block.preprocess(value)
        except Exception:
            raise HTTPException(422, "not a call of the page; /gradio_api/info lists them") from None
        known = ("data", "fn_index", "session_hash", "trigger_id")
        return [json.dumps({key: call.get(key) for key in known}).encode()]
