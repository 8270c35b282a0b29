"""`make demo` fails where the model does not say what it was told."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("second", "code"), [("Your name\nis Lena.", 0), ("Your name is Peter.", 2)]
)
def test_the_last_answer_has_to_say_the_name(second: str, code: int, tmp_path: Path) -> None:
    """With a program in place of ours that knows its answers; `make` itself ends with 2."""
    program = tmp_path / "bin" / "newllm"
    program.parent.mkdir()
    program.write_text(
        '#!/bin/sh\nif [ "$1" = chat ]; then cat > /dev/null; printf "%s\\n" '
        f'"Model: Hello Lena!" "Model: {second}"; else mkdir -p "{tmp_path}/run"; fi\n'
    )
    program.chmod(0o755)
    (tmp_path / "installed").touch()
    command = ["make", "demo", f"VENV={tmp_path}", f"DEMO={tmp_path}/run"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    assert second in done.stdout
    assert ("demo: the last answer does not say the name" in done.stderr) == (code != 0)
