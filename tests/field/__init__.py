# SPDX-License-Identifier: GPL-3.0-or-later
"""Field testing: whole jobs on small scenes of every kind that artists have, measured against what a render shows.

`PYTHON_OF_BLENDER tests/field/table.py --backend PYTHON_OF_BACKEND` prints the table; `--help` has the rest. A row is a
function with the decorator `bench.row`, in one of the modules that `table.ROWS_IN` names.
"""
