# SPDX-License-Identifier: GPL-3.0-or-later
"""LIM for Blender: one textured mesh with shape keys from anything that moves. The extension's package."""


def register():
    """Called by Blender when the extension is enabled."""
    from . import blender_addon

    blender_addon.register()


def unregister():
    """Called by Blender when the extension is disabled."""
    from . import blender_addon

    blender_addon.unregister()
