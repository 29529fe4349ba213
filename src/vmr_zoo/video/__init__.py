"""Raw video files: finding them, decoding them by time, and turning them into features."""
