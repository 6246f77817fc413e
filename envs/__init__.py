"""Gymnasium environments of Rheostat."""

from __future__ import annotations

import gymnasium

STREAM_CLUSTER = "rheostat/StreamCluster-v0"


def register() -> None:
    """Register the environments; Gymnasium also calls this as a plugin."""
    if STREAM_CLUSTER not in gymnasium.registry:
        gymnasium.register(
            id=STREAM_CLUSTER,
            entry_point="envs.cluster.env:StreamClusterEnv",
            vector_entry_point="envs.cluster.env:StreamClusterVectorEnv",
        )
