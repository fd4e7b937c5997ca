# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 install test --processors`: margins are read right, and what changes between kernels is said."""

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "install"), str(ROOT / "tests")]
import margins  # noqa: E402
import suite  # noqa: E402


@pytest.mark.parametrize(
    ("explanation", "expected"),
    [
        ("0.25 < 0.5", 2.0),
        ("0.3 > (0.5 * 0.1)", 6.0),
        ("np.float64(0.25) <= 0.5", 2.0),
        ("0.001 < 0.002\n  +  where 0.001 = mean()", 2.0),
        ("(2 * 3) >= 1.5", 4.0),
        ("'a' < 'b'", None),
        ("0 < 3", None),
        ("-1.0 < 2.0", None),
        ("3 == 3", None),
        ("1 < 2 < 3", None),
    ],
)
def test_the_margin_of_a_comparison(explanation, expected):
    assert margins.margin(explanation) == (pytest.approx(expected) if expected else None)


def result(outcome: str, **lines: float) -> dict:
    return {"outcome": outcome, "margins": {line.strip("_"): margin for line, margin in lines.items()}}


def test_what_changes_is_said():
    names = ["nothing set", "OPENBLAS_CORETYPE=Haswell"]
    same = {"a": result("passed", _3=1.2, _4=50.0), "b": result("passed")}
    lines, sound = suite.differences(names, [same, same])
    assert sound and lines == ["nothing set: 2 tests", "OPENBLAS_CORETYPE=Haswell: 2 tests"]
    other = {"a": result("passed", _3=1.1, _4=5.0), "b": result("failed")}
    lines, sound = suite.differences(names, [same, other])
    assert not sound
    assert "OPENBLAS_CORETYPE=Haswell: 2 tests, 1 FAILED" in lines and "    b" in lines and "b: failed, passed" in lines
    assert "a, line 3: margin 1.10 to 1.20, least with OPENBLAS_CORETYPE=Haswell" in lines
    assert not any("line 4" in line for line in lines), "five times away from failing is far enough"


def test_a_run_that_broke_off_is_no_pass():
    lines, sound = suite.differences(["one", "two"], [{"a": result("passed")}, {}])
    assert not sound and "two: ENDED EARLY" in lines


def test_its_files_exist():
    for name in suite.NUMERIC:
        assert (ROOT / "tests" / "core" / f"test_{name}.py").is_file()
    assert set(suite.QUICK) <= set(suite.NUMERIC) and suite.KERNELS[0] == {}
