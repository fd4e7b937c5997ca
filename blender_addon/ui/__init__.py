# SPDX-License-Identifier: GPL-3.0-or-later
"""Panels, settings and buttons."""
