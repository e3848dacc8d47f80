"""Weights in files: formats of other programs, arrays out of untrusted files, the model card."""
