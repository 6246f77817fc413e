"""The stream cluster as a Gymnasium environment."""
