"""What a bank of staged precision does under load."""
