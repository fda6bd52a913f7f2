"""Check a directory of weights, for a process that must not import torch: load.require_whole."""

import sys
from pathlib import Path

from edge_eval_lib.errors import UserError
from edge_eval_lib.models.load import require_complete

try:
    require_complete(Path(sys.argv[1]))
except UserError as error:
    sys.exit(str(error))
