"""A stand-in for the hub: the few addresses that huggingface_hub calls on a push, on this machine.

Files arrive inside the commit itself, as the hub lets small ones; the hub's own storage for large files is not played.
"""

import base64
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from huggingface_hub import ModelCardData
from huggingface_hub.repocard_data import model_index_to_eval_results
from ruamel.yaml import YAML

LANGUAGE = re.compile(r"[a-z]{2,3}|code|multilingual")
REPO_NAME = re.compile(r"[\w.-]+/[\w.-]+")


@dataclass
class Hub:
    """What was asked for and what was sent. ``files``: path in the repository -> content of the last commit."""

    address: str = ""
    requests: list[str] = field(default_factory=list)
    created: list[dict[str, Any]] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    cards: list[str] = field(default_factory=list)


def find_metadata_problems(card: str) -> list[str]:
    """What the hub's documentation of card metadata forbids, with huggingface_hub's own parsing of it."""
    _, block, _ = card.split("---\n", 2)
    metadata = YAML(typ="safe", pure=True).load(block)
    problems = []
    try:
        data = ModelCardData(**metadata)
        if "model-index" in metadata:
            model_index_to_eval_results(metadata["model-index"])
    except (TypeError, ValueError, KeyError) as error:
        return [str(error)]
    if data.base_model is not None and not REPO_NAME.fullmatch(str(data.base_model)):
        problems.append(f"base_model {data.base_model!r} is no name on the hub")
    problems += [f"language {name!r}" for name in data.language or () if not LANGUAGE.fullmatch(name)]
    if metadata.get("base_model_relation") not in (None, "adapter", "finetune", "quantized", "merge"):
        problems.append("base_model_relation")
    if metadata.get("license") == "other" and not {"license_name", "license_link"} <= metadata.keys():
        problems.append("license: other needs license_name and license_link")
    return problems


@contextmanager
def serve_hub() -> Iterator[Hub]:
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def do_GET(self) -> None:
            hub.requests.append(f"GET {self.path}")
            self.answer(404, {"error": "not there"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            hub.requests.append(f"POST {self.path}")
            if self.path == "/api/repos/create":
                hub.created.append(json.loads(body))
                name = f"{hub.created[-1].get('organization') or 'me'}/{hub.created[-1]['name']}"
                self.answer(200, {"url": f"{hub.address}/{name}", "name": name, "id": "1"})
            elif self.path == "/api/validate-yaml":
                hub.cards.append(json.loads(body)["content"])
                problems = find_metadata_problems(hub.cards[-1])
                self.answer(
                    400 if problems else 200, {"errors": [{"message": p} for p in problems], "warnings": []}
                )
            elif "/preupload/" in self.path:
                files = [
                    {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                    for file in json.loads(body)["files"]
                ]
                self.answer(200, {"files": files})
            elif "/commit/" in self.path:
                self.take_commit([json.loads(line) for line in body.splitlines()])
            else:
                self.answer(404, {"error": "not played"})

        def take_commit(self, lines: list[dict[str, Any]]) -> None:
            hub.commits.append(lines[0]["value"]["summary"])
            hub.files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            self.answer(
                200, {"commitUrl": f"{hub.address}/me/voice/commit/1", "commitOid": "1", "success": True}
            )

        def answer(self, status: int, content: dict[str, Any]) -> None:
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
