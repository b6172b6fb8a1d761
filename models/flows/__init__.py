"""Normalizing flows: bijections with their log-determinants, and the models assembled from them."""
