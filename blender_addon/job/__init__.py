# SPDX-License-Identifier: GPL-3.0-or-later
"""A job from its settings to the backend's answer."""
