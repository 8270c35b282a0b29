"""Serve the page, onnxruntime-web and an exported model to this machine's browser.

Usage: python examples/browser/serve.py FOLDER [--port 8000]

FOLDER is what `newllm export FILE --format onnx -o FOLDER` wrote. The page is the one of `newllm
serve`; only its `api.js` is this folder's, which needs no server.
"""

from __future__ import annotations

import argparse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import fetch

from newllm.serve import page_files

HERE = Path(__file__).parent
MODEL = ("new_llm.json", "tokenizer.json", "step.onnx", "prefill.onnx")
KINDS = {
    **page_files.KINDS,
    ".mjs": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".wasm": "application/wasm",
    ".onnx": "application/octet-stream",
}
# onnxruntime is compiled in the browser; text never becomes code.
HEADERS = page_files.page_headers("'wasm-unsafe-eval'")
NAMES = {"localhost", "127.0.0.1"}


def files(model: Path) -> dict[str, Path]:
    """What is served, by its path; nothing else on the disk can be asked for."""
    page = {file.name: file for file in [*page_files.FOLDER.iterdir(), *HERE.glob("*.js")]}
    runtime = {f"onnxruntime/{name}": fetch.FOLDER / name for name in fetch.FILES}
    exported = {f"model/{name}": model / name for name in MODEL}
    found = {**page, "": page["index.html"], **runtime, **exported}
    for file in exported.values():
        if not file.is_file():
            raise SystemExit(
                f"{file}: no such file; newllm export FILE --format onnx -o {model} writes it"
            )
    if not fetch.FOLDER.exists():
        raise SystemExit(f"onnxruntime-web is not here yet: python {HERE / 'fetch.py'} fetches it")
    return {name: file for name, file in found.items() if file.suffix in KINDS}


def handler(served: dict[str, Path]) -> type[BaseHTTPRequestHandler]:
    """Answers GET with these files."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = 30

        def do_GET(self) -> None:
            host = urlsplit(f"//{self.headers.get('Host', '')}").hostname
            file = served.get(urlsplit(self.path).path.removeprefix("/"))
            if host not in NAMES or file is None:
                self.send_error(404)
                return
            content = file.read_bytes()
            self.send_response(200)
            self.send_header("Content-Type", KINDS[file.suffix])
            self.send_header("Content-Length", str(len(content)))
            for name, value in HEADERS.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: object) -> None:
            """Nobody needs a line for every file."""

    return Handler


def main() -> None:
    """Serve until Ctrl+C."""
    parser = argparse.ArgumentParser(
        description="Serve the page, onnxruntime-web and a model to this machine's browser."
    )
    parser.add_argument("folder", type=Path, help="of newllm export --format onnx")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (8000)")
    given = parser.parse_args()
    served = files(given.folder)
    try:
        server = ThreadingHTTPServer(("127.0.0.1", given.port), handler(served))
    except OSError as error:
        raise SystemExit(f"--port {given.port}: {error.strerror}") from None
    print(f"http://127.0.0.1:{server.server_port} (Ctrl+C stops)", flush=True)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        server.server_close()


if __name__ == "__main__":
    main()
