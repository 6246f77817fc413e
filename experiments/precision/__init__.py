"""Data sets and training recipes of the staged networks."""
