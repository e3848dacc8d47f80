"""Reading texts and writing them with a trained model."""
