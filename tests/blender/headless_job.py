# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole job in a Blender of its own, as a user starts it without a window."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

HEADLESS = Path(__file__).resolve().parents[2] / "blender_addon" / "headless.py"


def run_job(options: list, report: Path, timeout: float) -> dict:
    """The report of a job that ended well; one that left none is named by its exit code (a signal is negative)."""
    run = subprocess.run([sys.executable, HEADLESS, "--", *options, "--json", report], timeout=timeout)
    assert report.is_file(), f"ended with {run.returncode} without a report"
    facts = json.loads(report.read_text(encoding="utf-8"))
    assert run.returncode == 0 and facts["status"] == "done", facts
    return facts
