# SPDX-License-Identifier: GPL-3.0-or-later
"""One child process that speaks the protocol: the backend, or the background Blender that captures. No bpy.

Nothing here blocks: two threads read the child's pipes, `poll` hands over what has arrived, and every deadline (a cancel
that is ignored, a process that will not exit) is checked there. However the child ends, `result` has one answer:
the result event, a LimError worded for an artist, or Cancelled.
"""

from __future__ import annotations

import collections
import errno
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import IO

from ...lim_core.shared import protocol
from ...lim_core.shared.errors import Cancelled, LimError, from_os_error

CANCEL_GRACE = 10.0  # seconds between asking the child to stop and ending it
EXIT_GRACE = 10.0  # seconds that a child may take to exit after its final event
KILL_GRACE = 3.0  # seconds between ending a child and killing it
LONGEST_LINE = 1 << 20  # bytes; protocol lines are a few hundred
TAIL_LINES = 40  # lines of the log that a crash report quotes
LONGEST_LOG = 32 << 20  # bytes that one run may add to the log

BACKEND, BLENDER = "backend", "background Blender"

# The environment's Python is started isolated (-I), so neither the user's site-packages nor Blender's variables reach
# it; then PYTHONPATH is ignored too, and the folder that holds lim_core is put on the path here.
_BOOTSTRAP = (
    "import sys, runpy; root, *arguments = sys.argv[1:]; sys.path.insert(0, root); "
    "sys.argv = ['lim_core', *arguments]; runpy.run_module('lim_core', run_name='__main__', alter_sys=True)"
)


def backend_command(python: str | os.PathLike, root: str | os.PathLike, *arguments: str) -> list[str]:
    """The command that runs `python -m lim_core ARGUMENTS` in the backend's environment.

    Args:
        python: the environment's Python.
        root: the folder that holds `lim_core`.
    """
    return [str(python), "-I", "-u", "-X", "utf8", "-c", _BOOTSTRAP, str(root), *map(str, arguments)]


def clean_environment() -> dict[str, str]:
    """This process's environment without what would change another Python's behaviour."""
    return {name: value for name, value in os.environ.items() if not name.upper().startswith("PYTHON")}


def start_backend(
    python: str | os.PathLike, root: str | os.PathLike, job: str | os.PathLike, modest: bool = False
) -> Worker:
    """Start the backend on a job folder (see `backend.check` first). Raises LimError if it does not start."""
    return Worker(backend_command(python, root, "run", str(job), "--follow-stdin"), job, BACKEND, modest)


class Worker:
    """A running child process.

    Args:
        command: program and arguments.
        job: the job folder; the child's stderr and every line of its stdout that is no event go to its `log.txt`.
        role: `BACKEND` or `BLENDER`; chooses the words and codes of what can go wrong.
        modest: run at a lower priority, so that the window of the Blender that waits stays quick.
    """

    def __init__(self, command: list[str], job: str | os.PathLike, role: str = BACKEND, modest: bool = False):
        self.job = Path(job)
        self.role = role
        self._events: queue.SimpleQueue[dict] = queue.SimpleQueue()
        self._final: dict | None = None
        self._failure: LimError | None = None
        self._saw_hello = False
        self._cancel_asked = False
        self._ended_by_us = False
        self._deadline: float | None = None  # the child is ended, then killed, when it is passed
        self._exit_seen: float | None = None
        self._tail: collections.deque[str] = collections.deque(maxlen=TAIL_LINES)
        self._log_lock = threading.Lock()
        self._log_left = LONGEST_LOG
        self._log_file: IO[bytes] | None = None
        try:
            self._log_file = open(self.job / protocol.LOG_FILE, "ab", buffering=0)
        except OSError as error:
            raise from_os_error(error, "opening the job's log") from error
        self._log(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')}  {role}: {' '.join(_shorten(command))}")
        options: dict = {}
        if sys.platform == "win32":
            options["creationflags"] = subprocess.CREATE_NO_WINDOW | subprocess.CREATE_NEW_PROCESS_GROUP
            if modest:
                options["creationflags"] |= subprocess.BELOW_NORMAL_PRIORITY_CLASS
        else:
            options["start_new_session"] = True  # Ctrl+C in the terminal is ours to pass on as a cancel
        try:
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                bufsize=0,
                cwd=self.job,
                env=clean_environment(),
                **options,
            )
        except OSError as error:
            self._log_file.close()
            code = "backend_missing" if isinstance(error, FileNotFoundError) else "backend_broken"
            if role == BLENDER:
                code = "blender_missing"
            if error.errno == errno.ENOMEM:
                code = "out_of_memory"
            hint = "Install the backend again in the add-on's preferences." if role == BACKEND else ""
            text = f"The {role} could not be started: {error.strerror or error}."
            raise LimError(code, text, hint) from error
        if modest and os.name != "nt":
            try:
                os.setpriority(os.PRIO_PROCESS, self.process.pid, 10)
            except OSError:
                pass  # it has ended already, which the readers report
        stdin, stdout, stderr = self.process.stdin, self.process.stdout, self.process.stderr
        assert stdin is not None and stdout is not None and stderr is not None  # pipes, all three
        self._stdin = stdin
        self._readers = [
            threading.Thread(target=self._read_events, args=(stdout,), name="lim-events", daemon=True),
            threading.Thread(target=self._read_log, args=(stderr,), name="lim-log", daemon=True),
        ]
        for reader in self._readers:
            reader.start()

    # ---- what the caller does ----------------------------------------------------------------------------------
    def poll(self) -> list[dict]:
        """The events since the last call, in order; at once, and perhaps none."""
        events = []
        while True:
            try:
                event = self._events.get_nowait()
            except queue.Empty:
                break
            if self._accept(event):
                events.append(event)
        self._keep_deadlines()
        return events

    @property
    def running(self) -> bool:
        """False once the child has exited and everything it said has been read (call `poll` first)."""
        if self.process.poll() is None:
            return True
        now = time.monotonic()
        if self._exit_seen is None:
            self._exit_seen = now
        # A grandchild can hold the pipe open after the child is gone; it is not waited for longer than this.
        reading = any(reader.is_alive() for reader in self._readers) and now - self._exit_seen < 2.0
        return reading or not self._events.empty()

    def cancel(self) -> None:
        """Ask the child to stop; it is ended, then killed, if it does not. Returns at once."""
        if self._cancel_asked:
            return
        self._cancel_asked = True
        self._deadline = time.monotonic() + CANCEL_GRACE
        self._send(protocol.encode_command("cancel"))

    def result(self) -> dict:
        """The result event, after `running` has become False. Raises LimError or Cancelled for every other end."""
        self.close()
        if self._failure:
            raise self._failure
        final = self._final
        if final and final["event"] == "result":
            return final
        if self._cancel_asked or (final and final["event"] == "cancelled"):
            raise Cancelled
        if final and final["event"] == "error":
            code = final["code"] if final["code"] in protocol.ERROR_CODES else "internal"
            raise LimError(code, str(final["message"]), str(final["hint"] or ""))
        raise self._crash()

    def close(self) -> None:
        """End the child if it still runs, at once, and free what this object holds. May be called twice."""
        if self.process.poll() is None:
            self._ended_by_us = True
            self.process.kill()
        try:
            self._stdin.close()
        except OSError:
            pass  # the child closed its end first
        try:
            self.process.wait(KILL_GRACE)
        except subprocess.TimeoutExpired:
            self._log(f"process {self.process.pid} does not end")
        for reader in self._readers:
            reader.join(0.5)
        with self._log_lock:
            if self._log_file:
                self._log_file.close()
                self._log_file = None

    @property
    def log_tail(self) -> str:
        """The last lines of this run's log."""
        with self._log_lock:
            return "\n".join(self._tail)

    # ---- inside --------------------------------------------------------------------------------------------------
    def _accept(self, event: dict) -> bool:
        name = event["event"]
        if self._final or self._failure:
            self._log(f"ignored after the end: {name}")
            return False
        if name == "hello":
            self._saw_hello = True
            if event["protocol"] != protocol.VERSION:
                self._failure = LimError(
                    "backend_outdated",
                    f"The {self.role} speaks version {event['protocol']} of the protocol, "
                    f"this add-on speaks {protocol.VERSION}.",
                    "Install the backend again in the add-on's preferences.",
                )
                self._end()
                return False
        elif name in protocol.FINAL_EVENTS:
            self._final = event
            self._deadline = time.monotonic() + EXIT_GRACE
        return True

    def _keep_deadlines(self) -> None:
        if self._deadline is None or time.monotonic() < self._deadline or self.process.poll() is not None:
            return
        if self._ended_by_us:
            self.process.kill()
            self._deadline = None
        else:
            self._log("it does not stop by itself and is ended")
            self._end()

    def _end(self) -> None:
        self._ended_by_us = True
        self._deadline = time.monotonic() + KILL_GRACE
        try:
            self.process.terminate()
        except OSError:
            pass  # it has just exited by itself

    def _send(self, line: str) -> None:
        try:
            self._stdin.write(line.encode("ascii") + b"\n")
        except (OSError, ValueError):
            pass  # it is gone or has closed its ears; the deadline deals with it

    def _read_events(self, stdout: IO[bytes]) -> None:
        pending, skipping = bytearray(), False
        while True:
            try:
                block = stdout.read(1 << 16)
            except (OSError, ValueError):
                block = b""
            if not block:
                break
            pending += block
            *lines, rest = pending.split(b"\n")
            pending = bytearray(rest)
            for line in lines:
                if skipping or len(line) > LONGEST_LINE:
                    skipping = False
                    self._log("a line was too long to be an event and was left out")
                else:
                    self._take_line(bytes(line))
            if len(pending) > LONGEST_LINE:
                pending, skipping = bytearray(), True
        if pending and not skipping:
            self._take_line(bytes(pending))
        stdout.close()

    def _take_line(self, line: bytes) -> None:
        if not line.strip():
            return
        try:
            event = protocol.decode_event(line)
        except ValueError:
            self._log(line.decode("utf-8", "replace").rstrip()[:2000])
        else:
            self._events.put(event)

    def _read_log(self, stderr: IO[bytes]) -> None:
        pending = b""
        while True:
            try:
                block = stderr.read(1 << 16)
            except (OSError, ValueError):
                block = b""
            if not block:
                break
            *lines, pending = (pending + block).split(b"\n")
            for line in lines:
                self._log(line.decode("utf-8", "replace").rstrip()[:2000])
            if len(pending) > LONGEST_LINE:
                pending = b""
        if pending:
            self._log(pending.decode("utf-8", "replace").rstrip()[:2000])
        stderr.close()

    def _log(self, line: str) -> None:
        data = (line + "\n").encode("utf-8", "replace")
        with self._log_lock:
            self._tail.append(line)
            if self._log_file and self._log_left > 0:
                self._log_left -= len(data)
                try:
                    self._log_file.write(data)
                except OSError:
                    self._log_left = 0  # a full disk: the end of the log stays in memory, for the crash report

    def _crash(self) -> LimError:
        """What to say about a child that exited without a final event."""
        status, tail = self.process.returncode, self.log_tail
        last = next((line for line in reversed(tail.splitlines()) if line.strip() and not line.startswith("---")), "")
        said = f" Its last words: {last.strip()[:300]}" if last else ""
        memory = ("MemoryError", "out of memory", "can't allocate memory", "Cannot allocate memory", "bad_alloc")
        if any(sign in tail for sign in memory) or status in (-9, 137, 0xC0000017):
            return LimError(
                "out_of_memory",
                f"The {self.role} was stopped by the system, most likely because the memory ran out."
                if status in (-9, 137)
                else f"The {self.role} ran out of memory.",
                "Choose a lower quality or fewer keyframes, or close other programs; finished stages are kept.",
            )
        if "No space left on device" in tail:
            return from_os_error(OSError(28, "No space left on device"), "computing")
        imports = ("ModuleNotFoundError", "ImportError", "DLL load failed", "cannot open shared object file")
        if self.role == BACKEND and not self._saw_hello and any(sign in tail for sign in imports):
            return LimError(
                "backend_broken",
                f"The backend's environment is incomplete.{said}",
                "Install the backend again in the add-on's preferences.",
            )
        if status is not None and status < 0:
            how = f"was ended by {_signal_name(-status)}"
        elif status:
            how = f"stopped unexpectedly with exit code {status}"
        else:
            how = "stopped without a result"
        return LimError(
            "backend_crashed",
            f"The {self.role} {how}.{said}",
            "Open the log for what it said last; running the job again goes on after the last finished stage.",
        )


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shorten(command: list[str]) -> list[str]:
    return ["…" if part == _BOOTSTRAP else part for part in command]
