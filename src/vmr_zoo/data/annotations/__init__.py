"""Published annotation files: records, readers, protocols, download."""
