"""A trained model at work: features of texts, and samples."""
