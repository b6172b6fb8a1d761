"""TFDS, embedded and generated sets as grain pipelines. A batch is a pure function of (seed, position)."""
