# SPDX-License-Identifier: GPL-3.0-or-later
"""Writes the lock files. For maintainers: `python install/lock.py [NAME …]`, after changing a version below.

Asks pip's own index client (so pip's configuration, proxy and certificates hold) for one page per package and writes
every wheel's hash for the platforms and Pythons that we support, plus, in a comment, how big the download is. A wheel
that lies in a folder of `pip config`'s find-links is listed too. Where the pinned version does not admit an older
Python, the newest one that does is locked beside it, with a marker. Nothing else in this folder imports pip.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
PYTHONS = ("3.10", "3.11", "3.12", "3.13")
PLATFORMS = {
    # name in the size comments: (substrings of the wheel's platform tag, …)
    # (torch has no wheels for Intel Macs, xatlas none for ARM Linux: neither can run the backend)
    "linux-x86_64": ("manylinux", "x86_64"),
    "macos-arm64": ("macosx", "arm64"),
    "windows-amd64": ("win_amd64",),
}

# Versions, one list per environment. `name==version; marker` is copied as it stands.
BACKEND = """
    torch==2.13.0
    filelock==4.2.11
    typing-extensions==4.16.0
    setuptools==84.2.1
    sympy==1.14.0
    mpmath==1.3.0
    networkx==3.6.1
    jinja2==3.1.6
    markupsafe==3.0.4
    fsspec==2026.9.0
    numpy==2.4.6
    scipy==1.17.1
    scikit-image==0.26.0
    pillow==13.0.0
    imageio==2.38.1
    tifffile==2026.3.3
    packaging==26.3
    lazy-loader==0.6
    safetensors==0.8.0
    xatlas==0.0.11
    fast-simplification==0.2.0
    embreex==4.4.0.post1
    jaxtyping==0.3.11
    wadler-lindig==0.1.8
"""
# For videos: FFmpeg, matting models, and the diffusers pipelines that make views.
VIDEO = """
    av==18.1.0
    onnxruntime==1.32.0
    flatbuffers==25.12.19
    protobuf==7.36.2
    pyyaml==6.0.3
    tqdm==4.70.1
    diffusers==0.42.1; python_version >= "3.11"
    huggingface-hub==2.4.0
    hf-xet==1.8.0
    click==8.5.1
    httpx2==2.16.2
    httpcore2==2.16.2
    h11==0.16.0
    anyio==4.16.0
    idna==3.20
    truststore==0.10.5
    certifi==2026.10.18
    charset-normalizer==3.5.2
    requests==2.34.2
    urllib3==2.8.0
    regex==2026.11.15
    importlib-metadata==10.2.0
    zipp==4.1.2
    lazy-importer==0.1.0; python_version >= "3.11"
    exceptiongroup==1.3.1; python_version < "3.11"
    tomli==2.4.1; python_version < "3.11"
    colorama==0.4.6; sys_platform == "win32"
"""
# What the CUDA build of torch 2.13.0 loads on Linux, as its metadata pins it.
CUDA = """
    cuda-toolkit==13.0.3.0
    cuda-bindings==13.5.0
    cuda-pathfinder==1.9.0
    nvidia-cudnn-cu13==9.20.0.48
    nvidia-cusparselt-cu13==0.8.1
    nvidia-nccl-cu13==2.29.7
    nvidia-nvshmem-cu13==3.4.5
    nvidia-cublas==13.1.1.3
    nvidia-cuda-cupti==13.0.85
    nvidia-cuda-nvrtc==13.0.88
    nvidia-cuda-runtime==13.0.96
    nvidia-cufft==12.0.0.61
    nvidia-cufile==1.15.1.6
    nvidia-curand==10.4.0.35
    nvidia-cusolver==12.0.4.66
    nvidia-cusparse==12.6.3.3
    nvidia-nvjitlink==13.5.37
    nvidia-nvtx==13.0.85
    triton==3.7.1
"""
TEST = """
    pytest==9.2.0
    iniconfig==2.3.1
    packaging==26.3
    pluggy==1.7.0
    pygments==2.21.0
    exceptiongroup==1.3.1; python_version < "3.11"
    tomli==2.4.1; python_version < "3.11"
    typing-extensions==4.16.0; python_version < "3.11"
    colorama==0.4.6; sys_platform == "win32"
"""
CORE_TESTS = """
    beartype==0.23.1
    trimesh==5.2.0
    manifold3d==3.5.4
    ruff==0.17.6
    mypy==2.4.1
    mypy-extensions==1.2.0
    pathspec==1.1.1
    librt==0.17.0
    ast-serialize==0.13.1
"""
TRAINING = """
    manifold3d==3.5.4
    accelerate==1.15.0
    psutil==7.2.2
    transformers==5.23.0
    tokenizers==0.23.3
    tensorboard==2.21.0
    absl-py==2.5.1
    grpcio==1.85.1
    markdown==3.11.3
    tensorboard-data-server==0.7.2
    werkzeug==3.1.9
    matplotlib==3.11.2
    contourpy==1.3.3
    cycler==0.12.1
    fonttools==4.68.0
    kiwisolver==1.5.1
    pyparsing==3.3.3
    python-dateutil==4.0.0
    tzdata==2026.6
    six==1.17.0; python_version < "3.11"
"""
BPY = """
    numpy==1.26.4
    cython==3.3.1
    requests==2.34.2
    urllib3==2.8.0
    certifi==2026.10.18
    charset-normalizer==3.5.2
    idna==3.20
    zstandard==0.25.0
"""
LOCKS = {
    "backend": (BACKEND + VIDEO, PYTHONS),
    "cuda": (CUDA, PYTHONS),
    "training": (TRAINING, PYTHONS),
    "test": (TEST + CORE_TESTS, PYTHONS),
    # The bpy wheels exist for one Python each; pytest is part of these environments.
    "blender-4.2": ("bpy==4.2.23" + BPY + TEST, ("3.11",)),
    "blender-4.5": ("bpy==4.5.15" + BPY + TEST, ("3.11",)),
    "blender-5.0": ("bpy==5.0.1" + BPY + TEST, ("3.11",)),
}


class Index:
    """The configured package index and wheel folders, through pip's own session."""

    def __init__(self):
        from pip._internal.commands import create_command
        from pip._internal.index.collector import LinkCollector

        command = create_command("index")
        options, _ = command.parse_args(["versions", "pip"])
        self.session = command._build_session(options)
        self.collector = LinkCollector.create(self.session, options)
        self.folders = [Path(folder) for folder in options.find_links if Path(folder).is_dir()]
        self.cache: dict[str, list[dict]] = {}

    def files(self, name: str) -> list[dict]:
        """Every wheel of a package: {"filename", "sha256", "size" or None, "requires_python" ("" if any)}."""
        if name not in self.cache:
            self.cache[name] = self._files(name)
        return self.cache[name]

    def _files(self, name: str) -> list[dict]:
        from pip._internal.index.collector import parse_links
        from pip._internal.models.link import Link

        found = []
        for location in self.collector.search_scope.get_index_urls_locations(name):
            if location.startswith("file:") and not Path(location.removeprefix("file://")).exists():
                continue
            page = self.collector.fetch_response(Link(location))
            if page is None:
                continue
            if "json" in page.content_type:
                for entry in json.loads(page.content)["files"]:
                    if not entry.get("yanked"):
                        found.append(
                            {
                                "filename": entry["filename"],
                                "sha256": entry["hashes"]["sha256"],
                                "size": entry.get("size"),
                                "requires_python": entry.get("requires-python") or "",
                            }
                        )
            else:
                for link in parse_links(page):
                    found.append(
                        {
                            "filename": link.filename,
                            "sha256": link.hash,
                            "size": None,
                            "requires_python": link.requires_python,
                        }
                    )
        for folder in self.folders:
            for path in folder.glob("*.whl"):
                if canonical(path.name.split("-")[0]) == name:
                    digest = hashlib.sha256(path.read_bytes()).hexdigest()
                    found.append({"filename": path.name, "sha256": digest, "size": None, "requires_python": None})
        found = [entry for entry in found if entry["filename"].endswith(".whl")]
        known = {version_of(entry): entry["requires_python"] for entry in found if entry["requires_python"] is not None}
        for entry in found:  # a mirror's page may leave out which Pythons a version is for
            if entry["requires_python"] is None:
                entry["requires_python"] = known.get(version_of(entry), "")
        return found


def canonical(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")


def version_of(entry: dict) -> str:
    """Version of a wheel, without a local part such as `+cpu`."""
    return entry["filename"].split("-")[1].split("+")[0]


def platforms(filename: str) -> list[str]:
    """Names in PLATFORMS that a wheel serves; all of them for a pure Python wheel; none for, say, musllinux."""
    tag = filename[:-4].split("-")[-1]
    if tag == "any":
        return list(PLATFORMS)
    names = [name for name, parts in PLATFORMS.items() if all(part in tag for part in parts)]
    if "macosx" in tag and "universal2" in tag:
        names = ["macos-arm64"]
    return names


def admits(filename: str, requires_python: str, python: str) -> bool:
    """Whether a wheel installs on CPython `python` ("3.11")."""
    from pip._vendor.packaging.specifiers import SpecifierSet

    if not SpecifierSet(requires_python).contains(f"{python}.99"):
        return False
    interpreters, abi, _ = filename[:-4].split("-")[-3:]
    minor = int(python.split(".")[1])
    for tag in interpreters.split("."):
        if tag in ("py3", f"py3{minor}") or tag == f"cp3{minor}" and abi in (tag, "abi3", "none"):
            return True
        if tag.startswith("cp3") and "abi3" in abi.split(".") and int(tag[3:] or 0) <= minor:
            return True
    return False


def wheels(index: Index, name: str, version: str, pythons) -> list[dict]:
    """Wheels of one version (or a local build of it, `+cpu`) that any of the platforms and Pythons can install."""
    return [
        entry
        for entry in index.files(name)
        if version_of(entry) == version
        and platforms(entry["filename"])
        and any(admits(entry["filename"], entry["requires_python"], python) for python in pythons)
    ]


def versions_for(index: Index, name: str, version: str, pythons) -> list[tuple[str, list[str]]]:
    """[(version, Pythons it is for)]: the pinned one, and the newest older one for the Pythons it does not admit."""
    from pip._vendor.packaging.version import InvalidVersion, Version

    def served(candidate: str) -> list[str]:
        files = wheels(index, name, candidate, pythons)
        return [p for p in pythons if any(admits(f["filename"], f["requires_python"], p) for f in files)]

    chosen = [(version, served(version))]
    left = [p for p in pythons if p not in chosen[0][1]]
    older = set()
    for entry in index.files(name):
        try:
            parsed = Version(entry["filename"].split("-")[1])
        except InvalidVersion:
            continue
        if not parsed.is_prerelease and not parsed.local and parsed < Version(version):
            older.add(parsed)
    for candidate in sorted(older, reverse=True):
        if not left:
            break
        hits = [p for p in served(str(candidate)) if p in left]
        if hits:
            chosen.append((str(candidate), hits))
            left = [p for p in left if p not in hits]
    if left:
        raise SystemExit(f"{name}: no wheel for Python {', '.join(left)}; give it a marker")
    return chosen


def lock_text(index: Index, pins: str, pythons) -> str:
    lines = [
        "# SPDX-License-Identifier: GPL-3.0-or-later",
        "# Written by install/lock.py; change the versions there. Sizes are of the index's wheels, in MB.",
    ]
    for pin in filter(None, map(str.strip, pins.splitlines())):
        requirement, _, marker = (part.strip() for part in pin.partition(";"))
        name, _, version = requirement.partition("==")
        wanted = pythons
        if marker.startswith("python_version <"):
            wanted = tuple(p for p in pythons if p == "3.10")
        elif marker.startswith("python_version >="):
            wanted = tuple(p for p in pythons if p != "3.10")
        if not wanted:
            continue
        choices = versions_for(index, name, version, wanted)
        for locked, served in choices:
            files = wheels(index, name, locked, served)
            markers = [marker] if marker else []
            if len(choices) > 1:
                lowest, highest = served[0], served[-1]
                if lowest != pythons[0]:
                    markers.append(f'python_version >= "{lowest}"')
                if highest != pythons[-1]:
                    markers.append(f'python_version <= "{highest}"')
            sizes: dict[str, int] = {}
            for entry in files:
                for platform in platforms(entry["filename"]):
                    if entry["size"] and "+" not in entry["filename"]:
                        sizes[platform] = max(sizes.get(platform, 0), entry["size"])
            lines.append(f"# {name}: " + ", ".join(f"{p} {sizes[p] / 1e6:.1f}" for p in PLATFORMS if p in sizes))
            lines.append(" ; ".join([f"{name}=={locked}", *filter(None, [" and ".join(markers)])]) + " \\")
            hashes = sorted({entry["sha256"] for entry in files})
            lines += [f"    --hash=sha256:{digest} \\" for digest in hashes[:-1]]
            lines.append(f"    --hash=sha256:{hashes[-1]}")
    return "\n".join(lines) + "\n"


def main(names: list[str]) -> int:
    unknown = [name for name in names if name not in LOCKS]
    if unknown:
        print(f"Unknown lock: {', '.join(unknown)}. Known: {', '.join(LOCKS)}.", file=sys.stderr)
        return 2
    index = Index()
    for name in names or LOCKS:
        pins, pythons = LOCKS[name]
        path = HERE / f"{name}.lock.txt"
        path.write_text(lock_text(index, pins, pythons), encoding="utf-8")
        print(f"{path.name}: {path.read_text(encoding='utf-8').count('==')} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
