"""Staged precision: profiles, streams of requests, engine, metrics."""
