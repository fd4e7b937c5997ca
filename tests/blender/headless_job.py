# SPDX-License-Identifier: GPL-3.0-or-later
"""A whole job in a Blender of its own, as a user starts it without a window."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path

HEADLESS = Path(__file__).resolve().parents[2] / "blender_addon" / "headless.py"


def run_job(options: list, report: Path, timeout: float) -> dict:
    """The report of a job that ended well.

    Blender's module itself ends now and then by a signal (5.0: once in some hundred jobs, at no place that repeats). That says
    nothing of the job: it is warned of, and the same command goes on in the same job folder, once, as it would for a user.
    """
    command = [sys.executable, HEADLESS, "--", *options, "--json", report]
    run = subprocess.run(command, timeout=timeout)
    if run.returncode < 0 and not report.is_file():
        warnings.warn(f"Blender ended by signal {-run.returncode}; the job goes on.", stacklevel=2)
        run = subprocess.run(command, timeout=timeout)
    assert report.is_file(), f"ended with {run.returncode} without a report"
    facts = json.loads(report.read_text(encoding="utf-8"))
    assert run.returncode == 0 and facts["status"] == "done", facts
    return facts
