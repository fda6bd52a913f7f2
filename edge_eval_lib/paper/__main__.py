"""Draw the README's pictures anew: `python -m edge_eval_lib.paper docs`."""

import sys
from pathlib import Path

from edge_eval_lib import paper
from edge_eval_lib.paper import pictures, pictures_of_variants

README = (pictures_of_variants.quadrants, pictures.accountings)


def main(directory: Path) -> list[Path]:
    """Draw them from the published figures, as PNG; return the files."""
    study, files = paper.build(), []
    for draw in README:
        draw(study).write_png(directory / f"{draw.__name__}.png")
        files.append(directory / f"{draw.__name__}.png")
    return files


if __name__ == "__main__":
    if len(sys.argv) != 2 or not Path(sys.argv[1]).is_dir():
        sys.exit("Say the directory that they go to: python -m edge_eval_lib.paper docs")
    print(*main(Path(sys.argv[1])), sep="\n")
