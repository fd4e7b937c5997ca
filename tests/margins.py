# SPDX-License-Identifier: GPL-3.0-or-later
"""A plugin for pytest, `-p margins -o enable_assertion_pass_hook=true --margins FILE`: how far every test is from failing.

FILE becomes `{test: {"outcome": "passed" | "failed" | "skipped", "margins": {line: factor}}}`. The margin of `assert a < b` is b / a,
of two numbers above zero; the smallest counts where a line runs several times.
"""

from __future__ import annotations

import ast
import json
import operator
import re
from pathlib import Path

COMPARISON = re.compile(r" (<|<=|>|>=) ")
WRAPPED = re.compile(r"(?:np|numpy|torch)\.\w+\(([^()]*)\)|tensor\(([^()]*)\)")
OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv}


def pytest_addoption(parser):
    parser.addoption("--margins", default="", metavar="FILE", help="write outcomes and margins of all tests")


def pytest_configure(config):
    if config.getoption("--margins"):
        config.pluginmanager.register(Recorder(Path(config.getoption("--margins"))))


class Recorder:
    def __init__(self, path: Path):
        self.path, self.tests = path, {}

    def pytest_assertion_pass(self, item, lineno, orig, expl):
        factor = margin(expl)
        if factor is not None:
            margins = self.tests.setdefault(item.nodeid, {"outcome": "", "margins": {}})["margins"]
            margins[str(lineno)] = min(margins.get(str(lineno), factor), factor)

    def pytest_runtest_logreport(self, report):
        test = self.tests.setdefault(report.nodeid, {"outcome": "", "margins": {}})
        if report.when == "call" or report.outcome != "passed":
            test["outcome"] = report.outcome

    def pytest_sessionfinish(self):
        self.path.write_text(json.dumps(self.tests, indent=1), encoding="utf-8")


def margin(explanation: str) -> float | None:
    """The factor by which a comparison, as pytest explains it, could be missed; None where it compares no two numbers."""
    first = explanation.splitlines()[0]
    while WRAPPED.search(first):
        first = WRAPPED.sub(lambda found: found[1] or found[2] or "0", first)
    parts = COMPARISON.split(first.strip())
    if len(parts) != 3:
        return None
    try:
        left, right = (_number(ast.parse(side.strip().strip("()") or "x", mode="eval").body) for side in parts[::2])
    except (SyntaxError, ValueError, ZeroDivisionError):
        return None
    low, high = (left, right) if parts[1].startswith("<") else (right, left)
    return high / low if low > 0 and high > 0 else None


def _number(node: ast.expr) -> float:
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return float(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_number(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_number(node.left), _number(node.right))
    raise ValueError
