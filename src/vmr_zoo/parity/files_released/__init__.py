"""One adapter per released code: lays out its data files for our readers, and recomputes its batches."""
