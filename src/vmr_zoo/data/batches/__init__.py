"""Batches of the contract: data module, split data sets, sampling, negative queries, temporal shifts."""
