"""The few answers of the Hugging Face Hub that pushing and pulling a model takes, on this machine."""

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote


class Hub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": len(data), **headers}.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        repos, parts = self.server.repos, self.path.strip("/").split("/")
        if self.headers.get("Authorization") != "Bearer hf_test":
            return self.answer({"error": "Invalid username or password."}, 401)
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            repos.setdefault(
                name,
                {
                    "private": asked.get("private", asked.get("visibility") == "private"),
                    "commits": {},
                },
            )
            return self.answer(
                {"url": f"http://{self.headers['Host']}/{name}", "name": name, "id": name}
            )
        if self.path == "/api/validate-yaml":
            return self.answer({"errors": [], "warnings": []})
        name = "/".join(parts[2:4])
        if parts[4] == "preupload":
            files = json.loads(body)["files"]
            each = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in files
            ]
            return self.answer({"files": each})
        if parts[4] == "commit":
            lines = [json.loads(line) for line in body.splitlines()]
            files = {
                each["value"]["path"]: base64.b64decode(each["value"]["content"])
                for each in lines
                if each["key"] == "file"
            }
            oid = hashlib.sha1(body).hexdigest()
            repos[name]["commits"] |= {oid: files, "main": files}
            repos[name]["head"] = oid
            return self.answer(
                {
                    "success": True,
                    "commitOid": oid,
                    "commitUrl": f"http://{self.headers['Host']}/{name}/commit/{oid}",
                    "hookOutput": "",
                }
            )
        return self.answer({"error": f"not known here: {self.path}"}, 404)

    def do_GET(self):
        parts = self.path.strip("/").split("?")[0].split("/")
        if parts == [""]:
            return self.answer({})
        if parts[:2] == ["api", "models"]:
            repo = self.server.repos.get("/".join(parts[2:4]))
            return self.answer(
                {"id": "/".join(parts[2:4]), "sha": repo["head"], "siblings": []}
                if repo
                else {"error": "none"},
                200 if repo else 404,
            )
        name, revision, file = "/".join(parts[:2]), unquote(parts[3]), "/".join(parts[4:])
        repo = self.server.repos.get(name)
        if repo is None:
            return self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        if revision not in repo["commits"]:
            return self.answer({"error": "Invalid rev id"}, 404, X_Error_Code="RevisionNotFound")
        if file not in repo["commits"][revision]:
            return self.answer({"error": "Entry not found"}, 404, X_Error_Code="EntryNotFound")
        data = repo["commits"][revision][file]
        oid = next(
            o
            for o, files in repo["commits"].items()
            if o != "main" and files == repo["commits"][revision]
        )
        return self.answer(data, ETag=f'"{hashlib.sha1(data).hexdigest()}"', X_Repo_Commit=oid)

    do_HEAD = do_GET


@contextmanager
def serving():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.repos = {}
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
