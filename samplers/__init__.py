"""One algorithm a file; every solver is a pure step under one `lax.scan`."""
