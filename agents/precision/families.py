"""All families of hand-made rules, by name, with the settings that tuning chooses from."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agents.precision.heuristics.combined import SlackCascade, slack_cascade_grid
from agents.precision.heuristics.feedback import (
    Alert,
    ShadowFeedback,
    alert_grid,
    shadow_feedback_grid,
)
from agents.precision.heuristics.inputs import Difficulty, difficulty_grid
from agents.precision.heuristics.load import (
    ModelSwitching,
    SlackFit,
    StageShedding,
    model_switching_grid,
    slack_fit_grid,
    stage_shedding_grid,
)
from agents.precision.heuristics.static import Cascade, cascade_grid
from agents.precision.known import Known
from agents.precision.rule import Rule

GRIDS: dict[str, Callable[[Known], Sequence[Rule]]] = {
    "slack_fit": slack_fit_grid,
    "model_switching": model_switching_grid,
    "stage_shedding": stage_shedding_grid,
    "difficulty": difficulty_grid,
    "confidence_cascade": cascade_grid,
    "shadow_feedback": shadow_feedback_grid,
    "alert": alert_grid,
    "slack_cascade": slack_cascade_grid,
}
"""Settings of each family; the static rules have none (see `heuristics.static`)."""

FAMILIES: dict[str, type[Rule]] = {
    family.name: family
    for family in (
        SlackFit,
        ModelSwitching,
        StageShedding,
        Difficulty,
        Cascade,
        ShadowFeedback,
        Alert,
        SlackCascade,
    )
}
"""Classes of the families, by name."""
