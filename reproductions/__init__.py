"""One paper's figure or table a file; `reproduce.py` is their command line."""
