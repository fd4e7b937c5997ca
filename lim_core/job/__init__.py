# SPDX-License-Identifier: GPL-3.0-or-later
"""A job folder: its capture, its state, its result, and what is told about it."""
