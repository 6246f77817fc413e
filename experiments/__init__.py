"""The commands of the lab (measure, train, compare, export, drive, reproduce) and their records."""
