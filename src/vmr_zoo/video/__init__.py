"""Raw video files: finding, decoding by time, encoding into features."""
