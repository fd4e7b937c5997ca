# SPDX-License-Identifier: GPL-3.0-or-later
"""The Blender side: capture, user interface, and writing the result. Never imports torch."""
