"""Training: an update, devices, processes, checkpoints, the log."""
