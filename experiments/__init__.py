"""One experiment a file: composition and settings, nothing else."""
