"""Text encoders, parsers, word tables and the embedding cache."""
