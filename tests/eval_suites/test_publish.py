"""The modules on their way to the Hub and back, over HTTP to a Hub on this machine."""

import base64
import hashlib
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from hf_unlearn.evaluate_modules.base import EVAL_SUITES, metric_names, suite_names


RECIPE = EVAL_SUITES.parent / "recipes" / "publish_eval_suites.py"
FILES = {"README.md", "app.py", "requirements.txt"}


class Hub:
    """As much of the Hub as it takes to publish and load a module, and what was sent to it.

    `files[repo][path]` is content, `repos[repo]` how the repository was created, `writes` the paths that were posted to.
    """

    def __init__(self):
        self.repos: dict[str, dict] = {}
        self.files: dict[str, dict[str, bytes]] = {}
        self.writes: list[str] = []


@contextmanager
def running():
    """Serve a `Hub`, and yield it with its address."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_GET(self):
            parts = self.path.split("?")[0].strip("/").split("/")
            if parts[:2] == ["api", "spaces"] and len(parts) == 4:
                repo = "/".join(parts[2:4])
                if repo in hub.repos:
                    return self.answer(
                        {"id": repo, "sha": "0" * 40, "private": hub.repos[repo]["private"], "siblings": []}
                    )
            if parts[0] == "spaces" and parts[3:5] == ["resolve", "main"]:
                content = hub.files.get("/".join(parts[1:3]), {}).get("/".join(parts[5:]))
                if content is not None:
                    return self.answer(content)
            self.answer({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

        do_HEAD = do_GET

        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            parts = self.path.split("?")[0].strip("/").split("/")
            if self.path == "/api/validate-yaml":
                return self.answer({"errors": [], "warnings": []})
            hub.writes.append(self.path)
            if self.path == "/api/repos/create":
                asked = json.loads(body)
                repo = f"{asked['organization']}/{asked['name']}"
                exists = repo in hub.repos
                hub.repos.setdefault(
                    repo, asked | {"private": asked.get("visibility") == "private" or asked.get("private", False)}
                )
                return self.answer({"url": f"{address}/spaces/{repo}", "id": repo}, 409 if exists else 200)
            repo, action = "/".join(parts[2:4]), parts[4]
            if action == "preupload":
                files = [
                    {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                    for f in json.loads(body)["files"]
                ]
                return self.answer({"files": files})
            assert action == "commit", self.path
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    content = base64.b64decode(line["value"]["content"])
                    hub.files.setdefault(repo, {})[line["value"]["path"]] = content
            commit = {
                "commitOid": "0" * 40,
                "commitUrl": f"{address}/spaces/{repo}/commit/{'0' * 40}",
                "hookOutput": "",
            }
            self.answer({"success": True} | commit)

        def answer(self, content, status=200, headers=()):
            content = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            fixed = {"Content-Length": str(len(content)), "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            for name, value in (fixed | dict(headers)).items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    address = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, address
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


# In a process of its own: where the Hub is, is read at import.
SCRIPT = f"""
import evaluate, runpy, sys
from pathlib import Path

recipe = runpy.run_path({str(RECIPE)!r})
publish, folder = recipe["publish"], Path("eval_suites")
publish("dry", folder=folder, dry_run=True)
publish("somebody", folder=folder)
publish("shy", folder=Path("one"), private=True)
try:
    publish("public", folder=Path("one"), private=True)
except ValueError as error:
    print("REFUSED", error)
module = evaluate.load("somebody/membership_inference")
print("AUC", module.compute(predictions=[2.0, 1.0, 0.0], references=[1, 1, 0])["auc"])
suite = evaluate.EvaluationSuite.load("somebody/wmdp")
print("SUITE", type(suite).__module__.split(".")[0], len(suite.suite))
"""


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The Hub after the script has run on a folder with more in it than may be uploaded, and what the script said."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(EVAL_SUITES, home / "eval_suites", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(EVAL_SUITES / "perplexity", home / "one" / "perplexity")
    inside = home / "eval_suites" / "membership_inference"
    for path in (
        inside / "scores.safetensors",
        inside / "notes.py",
        inside / "app.py.orig",
        inside.parent / "forget.jsonl",
    ):
        path.write_bytes(b"private")
    with running() as (hub, address):
        hub.repos["public/perplexity"] = {"private": False}
        environment = os.environ | {
            "HF_ENDPOINT": address,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_OFFLINE": "0",
            "HF_UPDATE_DOWNLOAD_COUNTS": "0",
            "HF_HOME": str(home),
            "HF_TOKEN": "hf_of_nobody",
            "NO_PROXY": "127.0.0.1",
        }
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT], env=environment, cwd=home, capture_output=True, text=True
        )
    assert done.returncode == 0, done.stderr
    return hub, done.stdout


def test_modules_are_uploaded_as_they_are(published):
    hub, _ = published
    for name in metric_names():
        sent = hub.files[f"somebody/{name}"]
        assert set(sent) == {f"{name}.py", *FILES}
        assert all(content == (EVAL_SUITES / name / path).read_bytes() for path, content in sent.items())
        assert hub.repos[f"somebody/{name}"]["sdk"] == "gradio" and not hub.repos[f"somebody/{name}"]["private"]


def test_suites_are_uploaded_with_a_card(published):
    hub, _ = published
    for name in suite_names():
        sent = hub.files[f"somebody/{name}"]
        assert set(sent) == {f"{name}.py", "README.md"} and hub.repos[f"somebody/{name}"]["sdk"] == "static"
        assert sent[f"{name}.py"] == (EVAL_SUITES / f"{name}.py").read_bytes()
        card = sent["README.md"].decode()
        assert card.startswith(f"---\ntitle: {name}") and f'load("somebody/{name}")' in card and "Returns:" in card


def test_nothing_else_is_uploaded(published):
    hub, _ = published
    names = [*metric_names(), *suite_names()]
    assert set(hub.files) == {f"somebody/{name}" for name in names} | {"shy/perplexity"}
    assert not any(content == b"private" for files in hub.files.values() for content in files.values())
    assert not any("/dry/" in path for path in hub.writes)


def test_a_dry_run_says_what_would_be_uploaded(published):
    _, said = published
    for name in metric_names():
        assert f"dry/{name}: {', '.join(sorted({f'{name}.py', *FILES}))} (not uploaded)" in said


def test_private_spaces_are_private_and_a_public_one_is_left_alone(published):
    hub, said = published
    assert hub.repos["shy/perplexity"]["private"] and set(hub.files["shy/perplexity"]) == {"perplexity.py", *FILES}
    assert "REFUSED You set --private, but the Space public/perplexity exists" in said
    assert "public/perplexity" not in hub.files


def test_what_was_published_loads_by_its_name(published):
    _, said = published
    assert "AUC 1.0" in said and "SUITE evaluate_modules 3" in said


def test_a_module_without_one_of_its_files_stops_everything(tmp_path):
    (tmp_path / "lonely").mkdir()
    (tmp_path / "lonely" / "lonely.py").touch()
    with pytest.raises(FileNotFoundError, match="lonely has no README.md, app.py, requirements.txt"):
        runpy.run_path(str(RECIPE))["spaces"]("somebody", tmp_path)
