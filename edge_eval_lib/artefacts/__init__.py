"""Where the files of runs lie, and whether a run is done."""
