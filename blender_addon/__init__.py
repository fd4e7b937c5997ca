# SPDX-License-Identifier: GPL-3.0-or-later
"""The Blender side: capture, user interface, and writing the result. Never imports torch."""

_command = None


def register():
    """Add the panel, the operators, the settings and the command `blender --command lim`."""
    import bpy

    from . import ids
    from .ui import importing_source, operators, panels, preferences, properties

    global _command
    for module in (properties, preferences, operators, importing_source, panels):
        for cls in module.CLASSES:
            bpy.utils.register_class(cls)
    properties.attach()
    operators.attach()
    importing_source.attach()
    panels.attach()
    _command = bpy.utils.register_cli_command(ids.COMMAND, _run_command)


def unregister():
    """Stop what runs and remove all that `register` added."""
    import bpy

    from .ui import importing_source, operators, panels, preferences, properties

    global _command
    panels.detach()
    importing_source.detach()
    operators.detach()
    if _command is not None:
        bpy.utils.unregister_cli_command(_command)
        _command = None
    properties.detach()
    for module in (panels, importing_source, operators, preferences, properties):
        for cls in reversed(module.CLASSES):
            bpy.utils.unregister_class(cls)


def _run_command(arguments):
    from . import command_line, ids

    return command_line.main(arguments, program=f"blender --command {ids.COMMAND}")
