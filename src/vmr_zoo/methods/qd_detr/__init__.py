"""QD-DETR: query-dependent video, saliency token and negative pairs; MESM and LMR build on it."""
