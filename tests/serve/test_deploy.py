"""What docs/CLIENTS.md sets up for several people, tried with the programs themselves."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

import newllm
from newllm.inference.engine import Engine
from newllm.serve.protect import Access
from tests.serve.serving import Running, Start
from tests.serve.test_abuse import CHAT, body

DEPLOY = Path(newllm.__file__).parent.parent / "deploy" / "serve"


def needs(*programs: str) -> pytest.MarkDecorator:
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"no {' '.join(missing)} here")


@contextmanager
def nginx(server: Running, folder: Path) -> Iterator[str]:
    """The address of nginx with the guide's configuration, before a server."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj",
         "/CN=talk.example", "-keyout", str(key), "-out", str(certificate)],
        check=True, capture_output=True,
    )  # fmt: skip
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    site = (DEPLOY / "nginx.conf").read_text()
    for theirs, ours in (
        ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
        ("/etc/ssl/talk.example.pem", str(certificate)),
        ("/etc/ssl/talk.example.key", str(key)),
        ("http://127.0.0.1:8000", server.url),
    ):
        assert site.count(theirs) == 1, theirs
        site = site.replace(theirs, ours)
    paths = "".join(
        f"{kind}_temp_path {folder / kind};"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    own = folder / "nginx.conf"
    own.write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log;"
        f"events {{}} http {{ access_log off; {paths} {site} }}"
    )
    with subprocess.Popen(["nginx", "-p", str(folder), "-c", str(own)]) as process:
        try:
            deadline = time.monotonic() + 20
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert process.poll() is None, (folder / "error.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield f"https://127.0.0.1:{port}"
        finally:
            process.terminate()


@needs("nginx", "openssl")
def test_answers_come_through_nginx_as_they_are_written(
    start: Start, tmp_path: Path, monkeypatch
) -> None:
    at_once = Engine._write

    def slowly(self: Engine) -> None:
        at_once(self)
        time.sleep(0.01)

    monkeypatch.setattr(Engine, "_write", slowly)
    server = start(access=Access(api_key="secret", hosts=["talk.example"]), answer_tokens=10**6)
    headers = {"Authorization": "Bearer secret", "Host": "talk.example"}
    with (
        nginx(server, tmp_path) as url,
        httpx.Client(
            base_url=url, headers=headers, verify=False, timeout=60, trust_env=False
        ) as http,
    ):
        assert http.get("/health").json()["status"] == "ok"
        times = []
        asked = body(stream=True, max_tokens=100, min_tokens=100)
        with http.stream("POST", CHAT, json=asked) as stream:
            for line in stream.iter_lines():
                if line.startswith("data: {") and json.loads(line[6:])["choices"]:
                    times.append(time.monotonic())
        assert len(times) > 20
        assert times[-1] - times[len(times) // 2] > 0.2, "they came all at once"
        large = http.post(CHAT, content=b"x" * (2**20 + 1))
        assert (large.status_code, large.json()["error"]["code"]) == (413, "request_too_large")
        with http.stream("POST", CHAT, json={**asked, "max_tokens": 10**6, "min_tokens": 10**6}):
            pass  # gone: nginx tells the server
        server.wait_idle()
        assert http.get("/v1/models", headers={"Authorization": ""}).status_code == 401


@needs("systemd-analyze")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    unit = (DEPLOY / "newllm.service").read_text()
    program = "/opt/newllm/bin/newllm"
    assert unit.count(program) == 1
    (tmp_path / "newllm.service").write_text(unit.replace(program, sys.executable))
    found = subprocess.run(
        ["systemd-analyze", "verify", str(tmp_path / "newllm.service")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (found.returncode, found.stderr) == (0, "")
