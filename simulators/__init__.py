"""What the world does: compiled simulators, knowing neither agents nor torch."""
