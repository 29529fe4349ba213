"""General helpers: files, processes, the machine, nested mappings, the console."""
