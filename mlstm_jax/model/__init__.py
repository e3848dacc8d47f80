"""The mLSTM: one step, the loops over time, the parameters."""
