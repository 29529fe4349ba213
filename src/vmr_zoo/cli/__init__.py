"""The command vmr and its verbs."""
