"""Run directories and sweeps."""
