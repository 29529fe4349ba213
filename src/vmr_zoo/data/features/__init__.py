"""Video, query and narration features on disk."""
