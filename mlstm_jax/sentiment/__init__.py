"""The unit that carries sentiment: the probe, the evaluation, control experiments."""
