"""Metrics, computed from predictions and targets only."""
