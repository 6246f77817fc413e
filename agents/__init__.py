"""Agents: what decides on plans, from constants to learned policies."""
