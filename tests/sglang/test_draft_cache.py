"""What a draft model has read, checked in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import engines


def test_a_draft_model_has_read_what_it_would_read_afresh() -> None:
    script = Path(__file__).parent / "draft_cache.py"
    done = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | engines.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
