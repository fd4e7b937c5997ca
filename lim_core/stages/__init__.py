# SPDX-License-Identifier: GPL-3.0-or-later
"""The stages of a job and their order."""
