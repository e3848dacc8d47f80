"""Weights in files: formats of other programs, arrays out of files one need not trust, the model card."""
