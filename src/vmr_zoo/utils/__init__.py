"""Helpers without a subject of their own: files, processes, the console."""
