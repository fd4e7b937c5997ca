# SPDX-License-Identifier: GPL-3.0-or-later
"""One mesh through all captured keyframes and between them."""
