"""Between data and noise: α(t), σ(t), network faces, couplings and time grids. Knows nothing of networks."""
