"""Composition of the Hydra configuration, its resolvers and run names."""
