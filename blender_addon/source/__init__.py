# SPDX-License-Identifier: GPL-3.0-or-later
"""Sources: scenes, files and clips, and how they are photographed."""
