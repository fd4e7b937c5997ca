# SPDX-License-Identifier: GPL-3.0-or-later
"""Meshes: surfaces, topology, deformation, textures, and the renderer of textured meshes."""
