"""A process of its own: check a directory of weights, or convert a GGUF file to one.

Called with the directory alone, or with the file and the directory to write.
"""

import sys
from pathlib import Path

from edge_eval_lib.errors import UserError
from edge_eval_lib.models import gguf, load

arguments = [Path(argument) for argument in sys.argv[1:]]
try:
    if len(arguments) == 1:
        load.require_complete(arguments[0])
    else:
        gguf.convert(arguments[0], arguments[1])
except UserError as error:
    sys.exit(str(error))
