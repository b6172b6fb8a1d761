"""What train.py and sample.py are made of: configuration, state, step, checkpoint, mesh, log."""
