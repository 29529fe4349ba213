"""vmr_zoo: video moment retrieval, five papers and their baselines in one frame."""

__version__ = "0.1.0"
