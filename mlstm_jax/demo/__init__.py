"""The page of `mlstm demo`: type and see the unit move, write with it held, score a file."""
