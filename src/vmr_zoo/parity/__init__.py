"""The released code of the papers: its weights and numbers against ours."""
