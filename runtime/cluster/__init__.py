"""The stream cluster on a real machine: scheduler, executor, jobs and their measurement."""
