"""Adapters of the trajectories that the authors' code trained: one module per method."""
