"""The Hydra configuration: composition, resolvers, run names."""
