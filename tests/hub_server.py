"""A server for the part of the Hugging Face Hub's protocol that downloads and uploads need.

It can be hostile: `server.headers` replace those of files, `server.about` the facts about a repository,
`server.status` is the answer to everything, and files whose names are in `server.endless` never end.
"""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading


class Hub(http.server.BaseHTTPRequestHandler):
    """Serves `server.repositories`, {"org/name": {"file": bytes}}; logs "METHOD path" to `server.log`."""

    protocol_version = "HTTP/1.1"

    def answer(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content_Length": len(data)} | headers).items():
            if value is not None:
                self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def files(self, repository):
        return self.server.repositories.get(repository)

    def do_GET(self):
        self.server.log.append(f"{self.command} {self.path}")
        if self.server.status:
            return self.answer(self.server.status, {"error": "\x1b]0;title\x07"}, X_Error_Message="no")
        if about := re.match(r"/api/models/([^/]+/[^/]+)/(?:revision|tree)/(\w+)", self.path):
            if (files := self.files(about[1])) is None:
                return self.answer(404, {"error": "Repository not found"}, X_Error_Code="RepoNotFound")
            if "/tree/" in self.path:
                about_file = lambda d: {"type": "file", "size": len(d), "oid": hashlib.sha1(d).hexdigest()}
                return self.answer(200, [{"path": f} | about_file(d) for f, d in files.items()])
            siblings = [{"rfilename": f} for f in files]
            facts = {"id": about[1], "sha": self.commit(files), "siblings": siblings} | self.server.about
            return self.endless() if "about" in self.server.endless else self.answer(200, facts)
        if file := re.match(r"/([^/]+/[^/]+)/resolve/\w+/(.+)", self.path):
            data = (self.files(file[1]) or {}).get(file[2])
            if data is None:
                return self.answer(404, {"error": "Entry not found"}, X_Error_Code="EntryNotFound")
            etag, commit = f'"{hashlib.sha1(data).hexdigest()}"', self.commit(self.files(file[1]))
            if file[2] in self.server.endless and self.command == "GET":
                return self.endless()
            return self.answer(200, data, **({"ETag": etag, "X_Repo_Commit": commit} | self.server.headers))
        return self.answer(404, {"error": self.path})

    def endless(self):
        """Sends for ever, or until the client has enough of it."""
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with contextlib.suppress(OSError):
            while True:
                self.wfile.write(b"100000\r\n" + bytes(2**20) + b"\r\n")
                self.server.sent += 2**20

    do_HEAD = do_GET

    def do_POST(self):
        self.server.log.append(f"{self.command} {self.path}")
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.headers.get("Authorization") == "Bearer hf_busy":
            return self.answer(429, {"error": "Too many requests"})
        if self.headers.get("Authorization") != "Bearer hf_secret":
            return self.answer(401, {"error": "Invalid username or password."})
        if self.path == "/api/repos/create":
            asked = json.loads(data)
            name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
            self.server.repositories.setdefault(name, {})
            return self.answer(200, {"url": f"http://{self.headers['Host']}/{name}"})
        if self.path == "/api/validate-yaml":
            return self.answer(200, {"errors": [], "warnings": []})
        if "/preupload/" in self.path:
            mode = {"uploadMode": "regular", "shouldIgnore": False}
            return self.answer(200, {"files": [f | mode for f in json.loads(data)["files"]]})
        if commit := re.match(r"/api/models/([^/]+/[^/]+)/commit/", self.path):
            for line in map(json.loads, data.splitlines()):
                if line["key"] == "file":
                    self.files(commit[1])[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            oid = self.commit(self.files(commit[1]))
            url = f"http://{self.headers['Host']}/{commit[1]}/commit/{oid}"
            return self.answer(200, {"commitUrl": url, "commitOid": oid})
        return self.answer(404, {"error": self.path})

    @staticmethod
    def commit(files):
        hashes = sorted((name, hashlib.sha1(data).hexdigest()) for name, data in files.items())
        return hashlib.sha1(repr(hashes).encode()).hexdigest()

    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serve():
    """Yields a running server, whose address is `server.url`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repositories, server.log, server.url = {}, [], f"http://127.0.0.1:{server.server_address[1]}"
    server.headers, server.about, server.status, server.endless, server.sent = {}, {}, 0, (), 0
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
