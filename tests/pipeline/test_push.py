"""Upload to the Hub through its own client: every file arrives, and what must not be published stays.

The server speaks the Hub's commit protocol with plain LFS transfers over loopback; the newer Xet storage is not spoken.
"""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ppe_lora.artifacts import write_json
from ppe_lora.export.parity import Reading, write_certificate
from tests.runs import make_rows
from tests.teacher_servers import KEY, free_port, serve

ROOT = Path(__file__).parents[2]


class HubServer:
    """A Hub that keeps what is committed to it, for one token."""

    def __init__(self) -> None:
        self.created: list[dict[str, Any]] = []
        self.stored: dict[str, bytes] = {}
        self.committed: dict[str, bytes] = {}
        self.app = Starlette(
            routes=[
                Route("/api/repos/create", self._create, methods=["POST"]),
                Route("/api/validate-yaml", self._valid, methods=["POST"]),
                Route("/api/models/{owner}/{name}/preupload/main", self._preupload, methods=["POST"]),
                Route("/{owner}/{name}.git/info/lfs/objects/batch", self._batch, methods=["POST"]),
                Route("/lfs/{oid}", self._put, methods=["PUT"]),
                Route("/api/models/{owner}/{name}/commit/main", self._commit, methods=["POST"]),
            ]
        )

    async def _create(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse({"error": "Invalid username or password."}, 401)
        self.created.append(await request.json())
        return JSONResponse({"url": f"{request.base_url}owner/name"})

    async def _valid(self, request: Request) -> Response:
        return JSONResponse({"errors": [], "warnings": []})

    async def _preupload(self, request: Request) -> Response:
        files = (await request.json())["files"]
        modes = ["lfs" if one["path"].endswith(".safetensors") else "regular" for one in files]
        told = [
            {"path": one["path"], "uploadMode": mode, "shouldIgnore": False}
            for one, mode in zip(files, modes, strict=True)
        ]
        return JSONResponse({"files": told})

    async def _batch(self, request: Request) -> Response:
        objects = (await request.json())["objects"]
        told = [
            {**one, "actions": {"upload": {"href": f"{request.base_url}lfs/{one['oid']}", "header": {}}}}
            for one in objects
        ]
        return JSONResponse({"transfer": "basic", "objects": told})

    async def _put(self, request: Request) -> Response:
        self.stored[request.path_params["oid"]] = await request.body()
        return Response()

    async def _commit(self, request: Request) -> Response:
        for line in (await request.body()).splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                self.committed[item["value"]["path"]] = base64.b64decode(item["value"]["content"])
            if item["key"] == "lfsFile":
                self.committed[item["value"]["path"]] = self.stored[item["value"]["oid"]]
        url = f"{request.base_url}owner/name/commit/abc"
        return JSONResponse({"commitUrl": url, "commitOid": "a" * 40, "hookOutput": ""})


@pytest.fixture
def export(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(os.urandom(5000))
    (folder / "config.json").write_text("{}")
    (folder / "README.md").write_text("---\nlicense: apache-2.0\n---\n# a model\n")
    write_certificate(folder, make_rows(1, seed=5), [Reading("{}")])
    return folder


def push(folder: Path, endpoint: str, *options: str, token: str = KEY) -> subprocess.CompletedProcess[str]:
    """`ppe-lora push` in a process of its own: the client reads its address once, when it is imported."""
    environment = {
        **{name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"},
        "HF_ENDPOINT": endpoint,
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-m", "ppe_lora", "push", str(folder), "owner/name", *options]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment)


def test_all_files_of_an_export_arrive_in_a_private_repository(export: Path) -> None:
    hub = HubServer()
    with serve(hub) as url:
        done = push(export, url)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "owner/name: uploading 4 files, 0.0 MB: README.md, config.json, model.safetensors, parity.json",
        "owner/name: with them go 1 requests of validation rows and their answers, as people wrote them (parity.json)",
        f"{export} is at {url}/owner/name",
    ]
    assert hub.committed == {path.name: path.read_bytes() for path in export.iterdir()}
    assert (hub.created[0]["name"], hub.created[0]["organization"]) == ("name", "owner")
    assert hub.created[0]["visibility"] == "private"


def test_a_token_that_may_not_write(export: Path) -> None:
    hub = HubServer()
    with serve(hub) as url:
        done = push(export, url, token="another")
    assert done.returncode == 2
    assert "owner/name: expected the Hub to accept the upload; got " in done.stderr
    assert done.stderr.endswith("; set HF_TOKEN to a token that may write there\n")
    assert hub.committed == {}


def test_a_hub_that_cannot_be_reached(export: Path) -> None:
    done = push(export, f"http://127.0.0.1:{free_port()}")
    assert done.returncode == 2
    assert done.stderr.startswith("error: owner/name: expected a reachable Hub; got ")


def test_what_must_not_be_published_is_refused_before_the_hub_is_asked(export: Path) -> None:
    """Weights that nobody has tested, and adapters whose base is a folder of one machine."""
    nowhere = "http://127.0.0.1:1"
    write_json(export / "adapter_config.json", {"base_model_name_or_path": "/models/base"})
    write_certificate(export, make_rows(1, seed=5), [Reading("{}")])
    done = push(export, nowhere)
    assert done.returncode == 2
    assert "expected the Hub repository of the base model; got a folder of this machine, /models/base" in done.stderr
    (export / "config.json").write_text("{ }")
    done = push(export, nowhere)
    assert done.returncode == 2
    assert "got others: config.json differs; export the run again" in done.stderr


def test_a_card_that_names_a_folder_of_this_machine_is_not_published(export: Path) -> None:
    """Cards of earlier versions have the base model's folder, with the user's name in it."""
    (export / "README.md").write_text(f"# a model\n\nFine-tuned from `{export.parent}`, see https://example.org/a/b.\n")
    write_certificate(export, make_rows(1, seed=5), [Reading("{}")])
    done = push(export, "http://127.0.0.1:1")
    assert done.returncode == 2
    assert " ".join(done.stderr.split()) == (
        f"error: {export}/README.md: expected nothing of this machine in what is published; got the place "
        f"{export.parent}; export again with `ppe-lora export RECIPE`"
    )


def test_a_token_and_an_environment_that_cannot_be_used(export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They were a UnicodeEncodeError and an ImportError of the Hub's client."""
    done = push(export, "https://hub.example", token="tok\u00e9n")
    assert (done.returncode, done.stderr.startswith("error: HF_TOKEN: expected the API key of ")) == (2, True)
    monkeypatch.setenv("ALL_PROXY", "socks5://me:hunter2@proxy:1080")
    done = push(export, "https://hub.example")
    assert (done.returncode, "hunter2" in done.stderr, "Traceback" in done.stderr) == (2, False, False)
    assert done.stderr.startswith("error: ALL_PROXY: expected a proxy that speaks HTTP; got socks5://***@proxy:1080")
