"""Published annotation files: download, readers, protocols."""
