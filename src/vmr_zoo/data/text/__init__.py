"""Text encoders, token ids, noun chunks, word vectors and the embedding cache."""
