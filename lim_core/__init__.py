# SPDX-License-Identifier: GPL-3.0-or-later
"""The backend of LIM for Blender: reconstruction, interpolation and tracing, without Blender.

Importing this package, `protocol`, `errors`, `request` or `cameras` needs at most numpy, because Blender's
Python imports them too; torch is imported only by the modules that compute with it.
"""

__version__ = "0.2.0"
