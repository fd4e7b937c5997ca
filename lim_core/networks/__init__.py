# SPDX-License-Identifier: GPL-3.0-or-later
"""The networks and what they need: configuration, checkpoints, pictures in, pictures out."""
