"""Gymnasium environments of Rheostat; importing this package registers them."""

from __future__ import annotations

import gymnasium

STREAM_CLUSTER = "rheostat/StreamCluster-v0"
STAGED_PRECISION = "rheostat/StagedPrecision-v0"

gymnasium.register(
    id=STREAM_CLUSTER,
    entry_point="envs.cluster.env:StreamClusterEnv",
    vector_entry_point="envs.cluster.env:StreamClusterVectorEnv",
)
gymnasium.register(
    id=STAGED_PRECISION,
    entry_point="envs.precision.env:StagedPrecisionEnv",
    vector_entry_point="envs.precision.env:StagedPrecisionVectorEnv",
)
