"""Annotations, features, narrations and the data module."""
