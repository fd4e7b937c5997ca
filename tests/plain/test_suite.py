# SPDX-License-Identifier: GPL-3.0-or-later
"""`python3 install test`: runs side by side, each with a report of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "install")]
import suite  # noqa: E402

WAIT = "import time, pathlib\nwhile not pathlib.Path({!r}).exists(): time.sleep(0.01)\n"


def of(name: str, program: str, **variables: str) -> suite.Run:
    return suite.Run(name, [sys.executable, "-c", program], os.environ | variables)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(suite.locations, "ROOT", tmp_path)
    return tmp_path


def test_runs_go_side_by_side_and_are_shown_one_after_the_other(here, capfd):
    """The first ends only after the third, which is started when the second has ended: all are shown in their order."""
    runs = [
        of("one", "print('erstes é')\n" + WAIT.format("third") + "print('end of one')"),
        of("two", "import sys; print('second'); sys.exit(3)"),
        of("three", "import pathlib; print('third'); pathlib.Path('third').touch()"),
    ]
    found = list(suite.together(runs, 2))
    assert [(name, code) for name, code, _ in found] == [("one", 0), ("two", 3), ("three", 0)]
    assert all(0 < seconds < 60 for *_, seconds in found) and found[0][2] > found[2][2]
    said = capfd.readouterr().out.split()
    assert " ".join(said) == "==== one erstes é end of one ==== two second ==== three third"


def test_one_at_a_time_waits_for_each(here, capfd):
    runs = [of("one", "open('one', 'w').close()"), of("two", "import os; print(os.path.exists('one'))")]
    assert [code for _, code, _ in suite.together(runs, 1)] == [0, 0]
    assert capfd.readouterr().out.split() == ["====", "one", "====", "two", "True"]


def test_runs_that_share_a_machine_share_its_cores(here, capfd, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    for name in ("OMP_NUM_THREADS", "LIM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    program = "import os; print(os.environ.get('OMP_NUM_THREADS'), os.environ.get('LIM_THREADS'))"
    said = []
    for at_once in (2, 1):
        list(suite.together([of("a", program), of("b", program, OMP_NUM_THREADS="3")], at_once))
        said.append([line for line in capfd.readouterr().out.splitlines() if line and "=" not in line])
    assert said == [["4 4", "3 4"], ["None None", "3 None"]]


def test_who_stops_leaves_nothing_running(here):
    runs = [of("one", ""), of("two", "import time; time.sleep(600)")]
    for name, code, _ in (runs_under_way := suite.together(runs, 2)):
        assert (name, code) == ("one", 0)
        break
    runs_under_way.close()  # waits for the second, which is ended


def test_the_slowest_tests_are_named(tmp_path):
    (tmp_path / "test_x.py").write_text("import time\ndef test_slow():\n    time.sleep(0.02)\n")
    command = suite.pytest_command(sys.executable, f"--durations={suite.SLOWEST}", str(tmp_path))
    said = subprocess.run(command, capture_output=True, text=True).stdout
    assert suite.SLOWEST == 20 and "slowest 20 durations" in said and "test_slow" in said.split("durations")[1]
