# SPDX-License-Identifier: GPL-3.0-or-later
"""The two commands: where things lie, what is locked, interrupted and repeated installations, and what gets shipped.

Nothing here uses a network. Environments are real: made with venv, filled by pip from wheels that the tests write.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
for folder in (str(ROOT), str(ROOT / "install")):
    if folder not in sys.path:
        sys.path.insert(0, folder)

import backend  # noqa: E402
import blender  # noqa: E402
import environment  # noqa: E402
import extension  # noqa: E402
import locations  # noqa: E402
import problems  # noqa: E402
import uninstall  # noqa: E402
from lim_core.shared.errors import LimError  # noqa: E402

LOCKS = sorted((ROOT / "install").glob("*.lock.txt"))
THIS_PYTHON = (f"{sys.version_info[0]}.{sys.version_info[1]}",)


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A LIM_HOME with a space and letters beyond ASCII; it does not exist yet."""
    folder = tmp_path / "Zuhause größer ユ"
    monkeypatch.setenv("LIM_HOME", str(folder))
    return folder


def run_install(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    """`python install ARGUMENTS`, in the tests' environment variables."""
    return subprocess.run(
        [sys.executable, str(ROOT / "install"), *arguments],
        capture_output=True, text=True, encoding="utf-8", cwd=cwd, env={**os.environ, "PYTHONUTF8": "1"}, timeout=120,
    )  # fmt: skip


def pretend_installed(folder: Path, lock: str) -> None:
    """An environment that looks finished: this Python and a stamp."""
    python = locations.python_of(folder)
    python.parent.mkdir(parents=True)
    python.symlink_to(Path(sys.executable).resolve())
    name = "backend.json" if folder.name == "backend" else "blender.json"
    stamp = {"locks": {lock: locations.lock_digest(lock)}, "device": "cpu", "torch": "0", "bpy": "0.0.0"}
    (folder / name).write_text(json.dumps(stamp), encoding="utf-8")


# ---- where things lie -------------------------------------------------------------------------------------------------
def test_home_is_the_variable_or_the_platforms_folder(home, monkeypatch, tmp_path):
    assert locations.home() == home
    monkeypatch.setenv("LIM_HOME", "relative")
    assert locations.home().is_absolute()
    monkeypatch.delenv("LIM_HOME")
    assert locations.home().name == "lim-blender"
    if sys.platform == "linux":
        monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
        assert locations.home() == tmp_path / "lim-blender"
        monkeypatch.setenv("XDG_DATA_HOME", "not/absolute")  # to be ignored, says the specification
        assert locations.home() == Path.home() / ".local" / "share" / "lim-blender"


def test_backend_state(home):
    assert locations.backend_state() == "missing"
    pretend_installed(home / "backend", "backend")
    assert locations.backend_state() == "ready"
    stamp = home / "backend" / "backend.json"
    stamp.write_text(stamp.read_text().replace(locations.lock_digest("backend"), "0" * 64))
    assert locations.backend_state() == "outdated"
    stamp.write_text("{ cut sho")
    assert locations.backend_state() == "missing"


# ---- locks ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_locks_hold_versions_and_hashes_and_no_address(path):
    text = path.read_text(encoding="utf-8")
    assert "://" not in text and "index-url" not in text and "@" not in text
    blocks = environment.lock_blocks(text)
    assert len(blocks) > 5
    for block in blocks:
        first, *rest = block.splitlines()
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*( ; [^\\]+)? \\", first), first
        assert rest and all(re.fullmatch(r"    --hash=sha256:[0-9a-f]{64}( \\)?", line) for line in rest), first
        assert rest[-1][-1] != "\\"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.name)
def test_a_lock_names_a_package_once_for_each_python(path):
    name = path.name.removesuffix(".lock.txt")
    for python in blender.WHEEL_PYTHON if name.startswith("blender") else backend.PYTHONS:
        packages = [package for package, _, _ in environment.locked_packages(name, python)]
        assert len(packages) == len(set(packages)) and packages


def test_every_lock_is_installable_by_a_command():
    names = {path.name.removesuffix(".lock.txt") for path in LOCKS}
    assert names == {"backend", "cuda", "training", "test", *(f"blender-{version}" for version in blender.WHEELS)}


def test_a_comment_does_not_make_an_installation_outdated(tmp_path, monkeypatch):
    before = locations.lock_digest("backend")
    changed = tmp_path / "backend.lock.txt"
    text = (ROOT / "install" / "backend.lock.txt").read_text(encoding="utf-8")
    monkeypatch.setattr(locations, "lock_file", lambda name: changed)
    changed.write_bytes(("# another size\n" + text).replace("\n", "\r\n").encode())
    assert locations.lock_digest("backend") == before
    changed.write_text(text.replace("numpy==2", "numpy==1", 1), encoding="utf-8")
    assert locations.lock_digest("backend") != before


# ---- environments -----------------------------------------------------------------------------------------------------
def write_wheel(folder: Path, name: str, version: str, content: str) -> str:
    """A pure Python wheel; its sha256."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": content,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for path, text in files.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
        record += f"{path},sha256={digest},{len(text.encode())}\n"
    files[f"{info}/RECORD"] = record + f"{info}/RECORD,,\n"
    folder.mkdir(exist_ok=True)
    wheel = folder / f"{name}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)
    return hashlib.sha256(wheel.read_bytes()).hexdigest()


@pytest.fixture
def small_lock(tmp_path, monkeypatch):
    """A folder of two wheels, and the lock “small” that lists them."""
    wheels = tmp_path / "meine Räder"
    first = write_wheel(wheels, "limtest_one", "1.0", "VALUE = 1  # " + "x" * 500 + "\n")
    second = write_wheel(wheels, "limtest_two", "2.0", "VALUE = 2\n")
    lock = tmp_path / "small.lock.txt"
    lock.write_text(
        "# limtest-one: linux-x86_64 0.1\nlimtest-one==1.0 \\\n    --hash=sha256:" + first + "\n"
        "# limtest-two: linux-x86_64 0.1\nlimtest-two==2.0 \\\n    --hash=sha256:" + second + "\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(locations, "lock_file", lambda name: lock)
    return lock, ["--no-index", "--find-links", str(wheels)]


def value_of(python: Path, module: str) -> str:
    run = subprocess.run(
        [python, "-I", "-c", f"import {module}; print({module}.VALUE)"], capture_output=True, text=True
    )
    return run.stdout.strip()


def test_an_interrupted_installation_is_mended(home, small_lock, capsys):
    lock, source = small_lock
    target = environment.Environment(home / "backend", "the backend", THIS_PYTHON)
    assert target.lacking(["small"]) == ["small"]

    # Interrupted while the environment was made: there is a folder, but no pip in it.
    (home / "backend" / "bin").mkdir(parents=True)
    target.begin()
    target.announce(["small"])
    assert "2 packages" in capsys.readouterr().out
    target.install("small", *source, only={"limtest-one": ""})
    assert target.versions_installed()["limtest-one"] == "1.0"
    assert target.lacking(["small"]) == ["small"], "not finished, so it must not count"

    # Interrupted while files were copied: one is cut short, and what pip moved aside lies about.
    packages = locations.site_packages_of(target.folder)
    whole = (packages / "limtest_one.py").read_text()
    (packages / "limtest_one.py").write_text(whole[:40])
    (packages / "~imtest_one").mkdir()
    target.begin()
    assert "limtest_one" in capsys.readouterr().out
    assert not (packages / "~imtest_one").exists()
    target.install("small", *source)
    target.finish(["small"], device="cpu")
    assert (packages / "limtest_one.py").read_text() == whole
    assert (value_of(target.python, "limtest_one"), value_of(target.python, "limtest_two")) == ("1", "2")
    assert target.lacking(["small"]) == []
    assert environment.damaged_distributions(target.folder) == []
    assert not list(target.folder.glob("*.part.txt"))

    # A new version of the lock makes it outdated.
    lock.write_text(lock.read_text().replace("limtest-two==2.0", "limtest-two==2.1"))
    assert target.lacking(["small"]) == ["small"]

    # A download that is not the locked file is refused.
    lock.write_text(re.sub("sha256:[0-9a-f]{4}", "sha256:0000", lock.read_text()).replace("==2.1", "==2.0"))
    target.begin()
    with pytest.raises(LimError) as caught:
        target.install("small", *source, "--force-reinstall")
    assert caught.value.code == "backend_broken" and "not the file" in caught.value.message
    assert target.lacking(["small"]) == ["small"]

    # A package that is nowhere.
    lock.write_text(lock.read_text().replace("limtest-two==2.0", "limtest-two==3.0"))
    with pytest.raises(LimError, match="no build of limtest-two==3.0"):
        target.install("small", *source)


def test_a_second_installation_waits_for_the_first(home, capsys):
    script = (
        f"import sys; sys.path[:0] = [{str(ROOT)!r}, {str(ROOT / 'install')!r}]\n"
        "import environment, time\n"
        "with environment.exclusive():\n    print('held', flush=True); time.sleep(1.2)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "held\n"
        began = time.monotonic()
        with environment.exclusive():
            waited = time.monotonic() - began
    assert waited > 0.5 and "another installation" in capsys.readouterr().out


def test_no_fitting_python_and_no_ensurepip_are_said(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(LimError, match="needs Python 3.3") as caught:
        environment.find_python(("3.3",), "The backend")
    assert "PATH" in caught.value.hint
    error = problems.ensurepip_error("/usr/bin/python3", "3.11")
    assert "python3.11-venv" in error.hint


def test_a_disk_without_room_is_said_before_the_download(home, monkeypatch):
    folder = home / "backend"
    folder.mkdir(parents=True)
    (folder / "pyvenv.cfg").write_text("version = 3.11.4\n")
    target = environment.Environment(folder, "the backend", backend.PYTHONS)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**7))
    with pytest.raises(LimError) as caught:
        target.announce(["backend"])
    assert caught.value.code == "disk_full" and "GB" in caught.value.message


def test_a_home_that_cannot_be_made_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("LIM_HOME", str(tmp_path / "file" / "home"))
    run = run_install("backend")
    assert run.returncode not in (0, 1) and "Traceback" not in run.stderr
    assert "file" in run.stderr


# ---- sentences --------------------------------------------------------------------------------------------------------
def test_missing_libraries_become_packages():
    text = "ImportError: libXi.so.6: cannot open shared object file: No such file or directory"
    assert problems.missing_libraries(text) == ["libXi.so.6"]
    listed = "\tlibSM.so.6 => not found\n\tlibz.so.1 => /lib/libz.so.1 (0x0)\n\tlibodd.so.3 => not found\n"
    names = problems.missing_libraries(listed)
    assert names == ["libSM.so.6", "libodd.so.3"]
    error = problems.library_error(names, "Blender 4.5 (bpy)")
    assert error.code == "blender_missing"
    assert "apt install libsm6" in error.hint and "dnf install libSM" in error.hint and "libodd.so.3" in error.hint
    assert problems.library_error(["libgomp.so.1"], "The backend").code == "backend_broken"


@pytest.mark.parametrize(
    ("said", "code", "word"),
    [
        ("OSError: [Errno 28] No space left on device", "disk_full", "LIM_HOME"),
        ("ERROR: Could not install packages: [Errno 30] Read-only file system: '/x'", "read_only", "LIM_HOME"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE", "backend_broken", "again"),
        (
            "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution found for torch==2",
            "backend_broken",
            "https_proxy",
        ),
        ("ERROR: No matching distribution found for xatlas==0.0.11", "backend_broken", "3.10 to 3.13"),
        ("something new", "backend_broken", "again"),
    ],
)
def test_pips_failures_become_sentences(said, code, word, tmp_path):
    error = problems.pip_error(said, "the backend", str(tmp_path))
    assert error.code == code and word in error.hint


@pytest.mark.parametrize(
    ("arguments", "word"), [([], "demo"), (["nonsense"], "demo"), (["backend", "--device", "abacus"], "--wheels")]
)
def test_wrong_usage_prints_the_help(arguments, word):
    run = run_install(*arguments)
    assert run.returncode == 2 and word in run.stdout + run.stderr and "usage:" in run.stdout + run.stderr


def test_an_unknown_wheel_folder_or_input_is_said(home, tmp_path):
    run = run_install("backend", "--wheels", str(tmp_path / "nowhere"))
    assert run.returncode == 3 and "nowhere" in run.stderr and not home.exists()
    run = run_install("demo", "--input", "none.glb", "--out", str(tmp_path / "out"))
    assert run.returncode == 3 and "none.glb" in run.stderr and not (tmp_path / "out").exists()


# ---- the commands ----------------------------------------------------------------------------------------------------
def test_a_repeat_is_quick_and_exec_runs_the_backend(home, tmp_path):
    pretend_installed(home / "backend", "backend")
    began = time.monotonic()
    run = run_install("backend", cwd=tmp_path)
    assert time.monotonic() - began < 3
    assert run.returncode == 0 and "is installed" in run.stdout
    run = run_install("exec", "--", "--help", cwd=tmp_path)
    assert run.returncode == 0 and "doctor" in run.stdout
    run = run_install("exec", "--", "nonsense", "--device", "x", cwd=tmp_path)
    assert run.returncode == 2 and "nonsense" in run.stderr


def test_the_device_is_looked_for(tmp_path, monkeypatch):
    if os.name == "nt" or sys.platform == "darwin":
        pytest.skip("fakes the programs that Linux has")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert backend.detect_device() == "cpu"
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\nexit 9\n")
    tool.chmod(0o755)
    assert backend.detect_device() == "cpu", "a driver that does not answer is no device"
    tool.write_text("#!/bin/sh\necho 'GPU 0: Some Card (UUID: GPU-1)'\n")
    assert backend.detect_device() == "cuda"


def test_uninstall_leaves_nothing_of_ours_and_everything_else(home, capsys):
    pretend_installed(home / "backend", "backend")
    pretend_installed(home / "blender-4.5", "blender-4.5")
    for name in ("jobs/old", "blender-user/4.5"):
        (home / name).mkdir(parents=True)
    (home / ".lock").touch()
    (home / "thesis.txt").write_text("mine")
    assert uninstall.run(dry_run=True) == 0
    assert (home / "backend").exists() and "would remove" in capsys.readouterr().out
    assert uninstall.run() == 0
    assert [path.name for path in home.iterdir()] == ["thesis.txt"]
    assert "thesis.txt" in capsys.readouterr().out
    (home / "thesis.txt").unlink()
    assert uninstall.run() == 0 and not home.exists()
    assert uninstall.run() == 0 and "Nothing is installed" in capsys.readouterr().out


# ---- the extension -----------------------------------------------------------------------------------------------------
def test_what_may_not_be_in_the_zip_is_found():
    good = [*extension.NEEDED, "weights/small/lrm/model-00001.safetensors"]
    assert extension.faults(good) == []
    assert extension.faults(good[1:]) == ["it lacks __init__.py"]
    for wrong in (
        "tests/plain/test_x.py",
        "lim_core/__pycache__/a.pyc",
        ".git/config",
        "demo_output/result.blend",
        "a.whl",
    ):
        assert extension.faults([*good, wrong]) == [f"it holds {wrong}"]


def test_the_zip_is_built_and_valid(tmp_path):
    """Only where a bpy wheel is installed already: its folder has Blender's own tool."""
    found = locations.stamp_of(locations.blender_folder(blender.DEFAULT_WHEEL))
    if not found:
        pytest.skip("needs an installed bpy wheel: python3 install test")
    run = run_install("extension", "--out", str(tmp_path / "größe x"))
    assert run.returncode == 0, run.stderr
    [path] = (tmp_path / "größe x").glob("*.zip")
    assert path.name == f"lim-{extension.manifest_version()}.zip"
    with zipfile.ZipFile(path) as archive:
        assert extension.faults(archive.namelist()) == []
        assert archive.testzip() is None
