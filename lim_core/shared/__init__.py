# SPDX-License-Identifier: GPL-3.0-or-later
"""What both sides of the wall use: standard library and numpy only."""
