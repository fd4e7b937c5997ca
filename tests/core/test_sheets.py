# SPDX-License-Identifier: GPL-3.0-or-later
"""Sheets without thickness: their two sides stay apart, whatever a registration does to them."""

import numpy as np

from lim_core.mesh import remesh
from lim_core.tracking.sheets import Sheets


def sheet(thickness: float, cells: int = 12, size: float = 1.0):
    """A closed flat box, its top and bottom a grid that is shifted against the other's by half a cell inside."""
    x, y = np.meshgrid(np.linspace(-size, size, cells + 1), np.linspace(-size, size, cells + 1), indexing="ij")
    inner = (np.abs(x) < size) & (np.abs(y) < size)
    number = np.arange((cells + 1) ** 2).reshape(cells + 1, cells + 1)
    one = np.stack([number[:-1, :-1], number[1:, :-1], number[1:, 1:]], -1).reshape(-1, 3)
    two = np.stack([number[:-1, :-1], number[1:, 1:], number[:-1, 1:]], -1).reshape(-1, 3)
    faces = np.concatenate([one, two])
    top = np.stack([x, y, np.where(inner, thickness / 2, 0.0)], -1).reshape(-1, 3)
    bottom = np.stack([x + 0.04 * inner, y + 0.03 * inner, np.where(inner, -thickness / 2, 0.0)], -1).reshape(-1, 3)
    return np.concatenate([top, bottom]), np.concatenate([faces, faces[:, ::-1] + len(top)]), np.tile(inner.ravel(), 2)


def test_sides_that_were_pulled_through_each_other_come_apart():
    vertices, faces, inner = sheet(2 * remesh.APART)
    sheets = Sheets(vertices, faces)
    assert np.isin(np.flatnonzero(inner), sheets.vertices).all()
    noise = np.random.default_rng(0).normal(0, remesh.APART, len(vertices))
    pulled = vertices * [1, 1, 0] + np.stack([0 * noise, 0 * noise, np.where(inner, noise, 0)], 1)
    before, after = sheets._over(pulled)[:, 2], sheets._over(sheets.restored(pulled))[:, 2]
    side = np.sign(vertices[sheets.vertices, 2] + 1e-12)
    assert (before * side < 0).mean() > 0.3
    assert (after * side)[side * vertices[sheets.vertices, 2] > 0].min() > 0.5 * remesh.APART


def test_a_sheet_that_keeps_its_thickness_stays_where_it_is():
    vertices, faces, inner = sheet(2 * remesh.APART)
    bent = vertices + np.stack([np.zeros(len(vertices)), np.zeros(len(vertices)), 0.02 * np.sin(2 * vertices[:, 0])], 1)
    assert np.ptp(bent[:, 2]) > 30 * remesh.APART
    assert np.abs(Sheets(vertices, faces).restored(bent) - bent).max() < 0.3 * remesh.APART


def test_what_is_thick_is_no_sheet():
    vertices, faces, _ = sheet(0.05)
    sheets = Sheets(vertices, faces)
    assert not len(sheets.vertices)
    moved = vertices * [1, 1, 0.01]
    assert np.array_equal(sheets.restored(moved), moved)
