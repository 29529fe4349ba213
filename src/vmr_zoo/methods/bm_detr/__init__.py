"""BM-DETR: Moment-DETR with background-aware frames, semantic alignment, learnable spans and shifting."""
