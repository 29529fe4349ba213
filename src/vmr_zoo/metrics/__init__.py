"""Metrics: they see predictions and targets, never a method."""
