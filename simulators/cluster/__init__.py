"""The stream cluster: applications, task times, engine, metrics."""
