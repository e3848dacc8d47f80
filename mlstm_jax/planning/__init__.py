"""Memory and speed on hardware that is not attached."""
