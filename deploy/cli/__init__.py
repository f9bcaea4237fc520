"""Groups of verbs of the command line that `telltale.py` puts together."""
