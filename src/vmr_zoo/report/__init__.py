"""Leaderboards, significance, the papers' tables, the HTML page and wandb."""
