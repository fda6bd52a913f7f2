"""The energy sources, one file each: every module here is imported, and registers its meters.

So is every one in a folder `meters` of a directory that EDGE_EVAL_EXTENSIONS names.
"""

import importlib

from edge_eval_lib import extensions

__path__ += extensions.folders("meters")

for _name in extensions.names(__path__):
    importlib.import_module(f"{__name__}.{_name}")
