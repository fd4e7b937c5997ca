# SPDX-License-Identifier: GPL-3.0-or-later
"""What finished stages left in a job folder, and the keys under which it is taken over."""

from __future__ import annotations

import ast
import hashlib
import json
from pathlib import Path

import numpy as np

from ..shared import files, protocol
from . import capture as captures
from . import result


class State:
    """What finished stages left behind: `state/<stage>.npz`, the key that it belongs to, and the seconds that it took.

    Attributes:
        seconds: of every stage that was taken over or kept, how long it took when it was computed.
        computed: the stages that were kept through this object, in order: they were not taken over.
    """

    def __init__(self, job: Path):
        self.folder = job / protocol.STATE_FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        files.clear_leftovers(self.folder)
        self.seconds: dict[str, float] = {}
        self.computed: list[str] = []

    def load(self, stage: str, key: str) -> dict[str, np.ndarray] | None:
        """The arrays of a stage if it was finished under this key; a damaged file, or one of an older form, counts as absent."""
        try:
            arrays = captures.load_npz(self.folder / f"{stage}.npz")
            if str(arrays.pop("key")) != key:
                return None
            self.seconds[stage] = float(arrays.pop("seconds"))
        except captures.UNREADABLE:
            return None
        return arrays

    def keep(self, stage: str, key: str, arrays: dict[str, np.ndarray], seconds: float) -> None:
        result.save_arrays(self.folder / f"{stage}.npz", key=np.array(key), seconds=np.array(seconds), **arrays)
        self.seconds[stage] = seconds
        self.computed.append(stage)


PACKAGE = Path(__file__).resolve().parents[1]
"""The folder of lim_core."""


def code_key(module: str, package: Path = PACKAGE) -> str:
    """Hash of the code that a module runs: its own file and all that it imports of the backend, directly or not.

    What other code left behind is never taken over, and code that has no part in it costs nobody a finished stage.

    Args:
        module: below `package`, with dots: "stages.pipeline".
        package: the folder of the package.
    """
    digest = hashlib.sha256()
    for name in sorted(closure(module, package)):
        digest.update(name.encode() + _file(name, package).read_bytes())
    return digest.hexdigest()


def closure(module: str, package: Path = PACKAGE) -> set[str]:
    """The names of a module and of everything of the package that it imports, at any depth and also inside functions."""
    found, waiting = set(), [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += [name.rpartition(".")[0], *_imports(name, package)]  # a package runs before what lies in it
    return found


def _imports(module: str, package: Path) -> list[str]:
    path = _file(module, package)
    inside = ([] if not module else module.split("."))[: None if path.name == "__init__.py" else -1]
    names = []
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = inside[: len(inside) - node.level + 1] + (node.module or "").split(".") * bool(node.module)
            names += [".".join(base), *(".".join([*base, alias.name]) for alias in node.names)]
    return [name for name in names if _file(name, package).is_file()]


def _file(module: str, package: Path) -> Path:
    """Of a module by its name; that of a package is its `__init__.py`."""
    place = package.joinpath(*module.split(".")) if module else package
    return place / "__init__.py" if place.is_dir() else place.with_suffix(".py")


def key_of(*parts) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()
