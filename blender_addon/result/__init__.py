# SPDX-License-Identifier: GPL-3.0-or-later
"""What a job leaves in the scene, and its ways out of it."""
