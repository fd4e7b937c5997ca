# SPDX-License-Identifier: GPL-3.0-or-later
"""A backend that computes nothing and misbehaves on demand: `python fake_backend.py MODE … run JOB --follow-stdin`.

MODE is the name of a function below, or `good[:SECONDS]`: a valid result of a wobbling grid (or of the captured template),
for a video with all that belongs to its clip.
"""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import threading
import time
import zlib
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from lim_core.shared import protocol, request  # noqa: E402


def say(name: str, **fields) -> None:
    raw(protocol.encode_event(name, **fields) + "\n")


def raw(text: str | bytes) -> None:
    sys.stdout.buffer.write(text.encode() if isinstance(text, str) else text)
    sys.stdout.buffer.flush()


def hello(version: int = protocol.VERSION) -> None:
    say("hello", protocol=version, version="fake", pid=os.getpid(), device="cpu")


def progress(fraction: float, stage: str = "trace") -> None:
    say("progress", stage=stage, fraction=fraction, seconds_left=1.5)


# ---- ways to misbehave ---------------------------------------------------------------------------------------------
def crash_at_start(job: Path) -> None:
    print("no such thing as a start", file=sys.stderr)
    sys.exit(3)


def missing_package(job: Path) -> None:
    print("ModuleNotFoundError: No module named 'torch'", file=sys.stderr)
    sys.exit(1)


def crash_midway(job: Path) -> None:
    hello()
    progress(0.4)
    raise RuntimeError("the ärmature exploded")


def no_final_event(job: Path) -> None:
    hello()
    progress(0.9)


def garbage(job: Path) -> None:
    raw("hello from a library\n{not json}\n[1, 2]\n\n" + '{"event": "dance"}\n{"event": "progress"}\n"result"\n')
    hello()
    raw("Fra:1 Mem:2M\n" + '{"event": 5}\n' + "[" * 5000 + "\n")
    good(job)


def not_utf8(job: Path) -> None:
    hello()
    raw(b"\xff\xfe caf\xe9\n")
    sys.stderr.buffer.write(b"\xe9\xff broken words\n")
    good(job)


def huge_line(job: Path) -> None:
    hello()
    for _ in range(40):
        raw(b"x" * (1 << 18))
    raw(b"\n")
    good(job)


def partial_line(job: Path) -> None:
    hello()
    raw('{"event":"result","path":"resu')


def split_line(job: Path) -> None:
    hello()
    line = protocol.encode_event("warning", code="no_depth", message="in two parts", hint="")
    raw(line[:20])
    time.sleep(0.2)
    raw(line[20:] + "\n")
    good(job)


def final_without_newline(job: Path) -> None:
    hello()
    write_result(job)
    raw(protocol.encode_event("result", path=protocol.RESULT_FILE, seconds=0.1))


def wrong_protocol(job: Path) -> None:
    hello(version=protocol.VERSION + 41)
    good(job)
    time.sleep(30)


def two_finals(job: Path) -> None:
    good(job)
    say("error", code="internal", message="after the end", hint="")


def error_event(job: Path) -> None:
    hello()
    say("error", code="empty_surface", message="The surface at frame 9 is empty.", hint="Choose another keyframe.")
    sys.exit(3)


def bad_capture(job: Path) -> None:
    hello()
    say("error", code="bad_capture", message="The picture k000_v00.png is damaged.", hint="Capture again.")


def missing_file(job: Path) -> None:
    hello()
    say("error", code="missing_file", message="The capture is incomplete.", hint="Capture again.")


def bad_template(job: Path) -> None:
    hello()
    say("error", code="bad_template", message="The file template.npz is damaged.", hint="Capture again.")


def bad_video(job: Path) -> None:
    hello()
    say("error", code="bad_video", message="The clip “x.mp4” cannot be decoded.", hint="Convert it to another format.")


def no_clip_file(job: Path) -> None:
    """A result of a video without what its camera is made from."""
    good(job, clip=False)


def unknown_code(job: Path) -> None:
    hello()
    say("error", code="who_knows", message="Something of a newer kind.", hint="")


def result_but_lingers(job: Path) -> None:
    good(job)
    time.sleep(60)


def result_that_is_not_there(job: Path) -> None:
    hello()
    for name in (protocol.RESULT_FILE, protocol.RESULT_ARRAYS):
        (job / name).unlink(missing_ok=True)
    say("result", path=protocol.RESULT_FILE, seconds=0.1)


def truncated_result(job: Path) -> None:
    hello()
    write_result(job)
    arrays = job / protocol.RESULT_ARRAYS
    arrays.write_bytes(arrays.read_bytes()[:200])
    say("result", path=protocol.RESULT_FILE, seconds=0.1)


def hangs(job: Path) -> None:
    """Ignores the cancel, the end of stdin and SIGTERM."""
    if os.name != "nt":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hello()
    progress(0.2)
    time.sleep(120)


def killed(job: Path) -> None:
    hello()
    progress(0.5)
    os.kill(os.getpid(), signal.SIGKILL)


def terminated(job: Path) -> None:
    hello()
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(5)


def memory_error(job: Path) -> None:
    hello()
    raise MemoryError


def orphan_holds_the_pipe(job: Path) -> None:
    """A grandchild inherits stdout and outlives the backend."""
    import subprocess

    hello()
    subprocess.Popen([sys.executable, "-c", "import time; time.sleep(8)"])
    good(job)


def talks_without_end(job: Path) -> None:
    hello()
    for _ in range(3000):
        print("chatter " * 40, file=sys.stderr)
        progress(0.1)
    good(job)


# ---- ways to behave --------------------------------------------------------------------------------------------------
def good(job: Path, seconds: float = 0.0, clip: bool = True) -> None:
    """Stages and progress over some seconds, listening for a cancel, then a valid result."""
    hello()
    asked = threading.Event()
    if "--follow-stdin" in sys.argv:
        threading.Thread(target=_listen, args=(asked,), daemon=True).start()
    stages = dict(protocol.STAGES)
    if request.read(job).source == "video":
        stages = {**protocol.VIDEO_STAGES, **stages}
    for index, stage in enumerate(stages):
        say("stage", stage=stage, index=index, count=len(stages))
        progress((index + 0.5) / len(stages), stage)
        if asked.wait(seconds / len(stages)):
            say("cancelled")
            return
        if stage == "import":
            import_clip(job)
        elif stage == "views":
            make_views(job)
    say("warning", code="small_in_view", message="The object is small in the pictures.", hint="Capture it by itself.")
    write_result(job)
    if not clip:
        (job / protocol.CLIP_FILE).unlink()
    say("result", path=protocol.RESULT_FILE, seconds=0.5)


def _listen(asked: threading.Event) -> None:
    # os.read, not sys.stdin: a thread that waits in a buffered reader aborts the interpreter at its exit.
    heard = b""
    while b"\n" not in heard and (block := os.read(0, 4096)):
        heard += block
    if heard:
        assert protocol.decode_command(heard)["command"] == "cancel"
    asked.set()


CLIP_SIZE = (64, 48)
CLIP_FRAMES = 9
CLIP_CROP = (20, -2, 44)
"""x, y and side of the square that holds the object: not in the middle, and partly outside."""


def import_clip(job: Path) -> None:
    """What the import of a clip leaves: a film of nine frames, or as many as there are pictures."""
    import numpy as np

    from lim_core.shared import cameras

    wanted = request.read(job)
    path = Path(wanted.video)
    folder = path if path.is_dir() else path.parent if path.suffix == ".png" else None
    files = sorted(found.name for found in folder.glob("*.png")) if folder else []
    count = len(files) or CLIP_FRAMES
    last = min(wanted.video_last or count, count)
    step = wanted.video_step or 4
    frames = range(wanted.video_first, last + 1, step)
    to_world, intrinsics = cameras.job_cameras(CLIP_CROP[2], 4, 4)
    intrinsics = intrinsics[0].copy()
    intrinsics[:2, 2] += CLIP_CROP[:2]
    clip = {
        "path": str(path), "files": files, "folder": str(folder or ""), "resolution": CLIP_SIZE, "rotation": 0,
        "pixel_aspect": 1.0, "fps": wanted.video_fps or 30000 / 1001, "first": wanted.video_first, "last": last,
        "count": count, "frame_start": wanted.video_start - (wanted.video_first - 1), "step": step,
        "keyframes": [wanted.video_start + frame - wanted.video_first for frame in frames], "inbetweens": step - 1,
        "camera_to_world": to_world[0].tolist(), "intrinsics": intrinsics.tolist(), "crop": CLIP_CROP,
        "foreground": "alpha",
    }  # fmt: skip
    (job / protocol.CLIP_FILE).parent.mkdir(exist_ok=True)
    (job / protocol.CLIP_FILE).write_text(json.dumps(clip), encoding="utf-8")
    _preview(job, protocol.CLIP_PREVIEW, np.full((8, 8 * len(frames), 3), 200, np.uint8), "the object in the clip")


def make_views(job: Path) -> None:
    """The sheet of generated views: a row of squares per view, a column per keyframe, redder from column to column."""
    import numpy as np

    columns = len(request.read(job).keyframes)
    sheet = np.zeros((4 * 8, columns * 8, 3), np.uint8)
    sheet[..., 0] = np.repeat(np.linspace(0, 255, columns), 8)
    _preview(job, protocol.VIEWS_PREVIEW, sheet, "generated views")


def _preview(job: Path, name: str, image, label: str) -> None:
    (job / protocol.PREVIEW_FOLDER).mkdir(exist_ok=True)
    _write_png(job / name, image)
    say("preview", path=name, label=label)


def write_result(job: Path) -> None:
    """A result that keeps every promise of docs/architecture.md."""
    import numpy as np

    wanted = request.read(job)
    frames = np.array(wanted.frames())
    if wanted.template == "mesh":
        template = np.load(job / protocol.TEMPLATE_FILE, allow_pickle=False)
        vertices, faces, uvs = template["vertices"], template["faces"], None
    else:
        count = 12
        axis = np.linspace(-0.6, 0.6, count, dtype=np.float32)
        x, y = (grid.ravel() for grid in np.meshgrid(axis, axis))
        vertices = np.stack([x, y, np.zeros_like(x)], 1)
        corner = (np.arange(count - 1)[:, None] * count + np.arange(count - 1)).ravel()
        quads = np.stack([corner, corner + 1, corner + count + 1, corner + count], 1)
        faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)
        uvs = (vertices[faces][..., :2] / 1.2 + 0.5).astype(np.float32)
    wave = np.sin(frames / 5)[:, None] * 0.2 * vertices[:, 0]
    positions = np.repeat(vertices[None], len(frames), 0).astype(np.float32)
    positions[..., 2] += wave - wave[0]
    arrays = {
        "positions": positions, "frames": frames, "faces": faces.astype(np.int32),
        "confidence": np.ones(positions.shape[:2], np.float32), "feed_forward": positions,
    }  # fmt: skip
    if uvs is not None:
        arrays["loop_uvs"] = uvs
        _write_png(job / protocol.TEXTURE_FILE, np.full((16, 16, 3), (200, 120, 40), np.uint8))
    metrics = {}
    if wanted.reduced():
        arrays["keys"] = np.linspace(0, len(frames) - 1, wanted.max_keys).round().astype(int)
        metrics = {"keys": wanted.max_keys, "reduced_rms": 0.25, "reduced_max": 1.5}
    np.savez(job / protocol.RESULT_ARRAYS, **arrays)
    result = {
        "protocol": protocol.VERSION, "frames": wanted.frames(), "seconds": dict.fromkeys(protocol.STAGES, 0.1),
        "warnings": [], "template": wanted.template, "vertices": len(vertices), "faces": len(faces), "metrics": metrics,
    }  # fmt: skip
    (job / protocol.RESULT_FILE).write_text(json.dumps(result), encoding="utf-8")


def _write_png(path: Path, image) -> None:
    rows = b"".join(b"\0" + row.tobytes() for row in image)
    blocks = (
        (b"IHDR", struct.pack(">2I5B", image.shape[1], image.shape[0], 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    )
    data = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in blocks)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


if __name__ == "__main__":
    mode, _, seconds = sys.argv[1].partition(":")
    folder = Path(sys.argv[sys.argv.index("run") + 1])
    globals()[mode](folder, *([float(seconds)] if seconds else []))
