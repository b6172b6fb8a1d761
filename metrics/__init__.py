"""Numbers about samples, densities and embeddings."""
