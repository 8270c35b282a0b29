"""What the example's server hands out, and how onnxruntime-web gets there."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
from pathlib import Path

import httpx

from tests.examples.talking import EXAMPLE, needs_runtime
from tests.serve.browsing import SECONDS


@needs_runtime
def test_the_server_hands_out_its_files_alone(address: str) -> None:
    def status(path: str, host: str = "localhost") -> int:
        connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=SECONDS)
        connection.request("GET", path, headers={"Host": host})
        found = connection.getresponse().status
        connection.close()
        return found

    assert status("/model/step.onnx") == 200
    for path in ("/serve.py", "/../api.js", "/%2e%2e/api.js", "/model/../api.js", "/x"):
        assert status(path) == 404, path
    assert status("/", "elsewhere.example") == 404
    with httpx.Client(base_url=address, trust_env=False) as client:
        policy = client.get("/").headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe-inline" not in policy
        assert "'unsafe-eval'" not in policy
        assert client.get("/api.js").content == (EXAMPLE / "api.js").read_bytes()


def test_mistakes_get_one_line(tmp_path: Path) -> None:
    def told(*arguments: str) -> str:
        command = [sys.executable, str(EXAMPLE / "serve.py"), *arguments]
        done = subprocess.run(command, capture_output=True, text=True, timeout=6 * SECONDS)
        assert done.returncode != 0
        return done.stderr.strip()

    assert "newllm export FILE --format onnx" in told(str(tmp_path))
    assert "\n" not in told(str(tmp_path))


def test_a_package_that_differs_is_not_kept(tmp_path: Path) -> None:
    script = tmp_path / "fetch.py"
    script.write_bytes((EXAMPLE / "fetch.py").read_bytes())
    npm = tmp_path / "bin" / "npm"
    npm.parent.mkdir()
    npm.write_text(
        '#!/bin/sh\nwhile [ "$1" != --pack-destination ]; do shift; done\necho > "$2/a.tgz"\n'
    )
    npm.chmod(0o755)
    path = f"{npm.parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        [sys.executable, str(script)], env={**os.environ, "PATH": path},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "is not what was tested" in done.stderr
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bin", "fetch.py"]
