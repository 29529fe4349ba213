"""Video and query features: sources, file stores, feature sets, and their checks."""
