"""Where a run is shown besides its folder (recipe section `track`): W&B and Weave. Both are off by default."""

from typing import Literal

from pydantic import Field, field_validator

from ppe_lora.section import Section

TrackMode = Literal["auto", "online", "offline"]


class WandbTrack(Section):
    """Metrics, configuration and artifacts as a W&B run."""

    project: str = Field(min_length=1)
    entity: str | None = None
    """Team or user; null is the key's default."""


class WeaveTrack(Section):
    """A trace per evaluated request, and an evaluation per epoch and for the test rows."""

    project: str
    """`entity/project`: written before any server is asked, so the entity has to be said."""
    rate: float = Field(default=1.0, gt=0, le=1)
    """Share of the rows that are traced, at least one. It is the same rows in every epoch and run, so evaluations
    compare."""

    @field_validator("project")
    @classmethod
    def _has_entity(cls, project: str) -> str:
        if not is_weave_project(project):
            raise ValueError(f"expected entity/project, for example my-team/ppe; got {project!r}")
        return project


def is_weave_project(project: str) -> bool:
    """Whether it is `entity/project`."""
    return len([part for part in project.split("/") if part.strip()]) == 2 and project.count("/") == 1


class Track(Section):
    """What a run sends, and where. The run folder has all of it in any case."""

    mode: TrackMode = "auto"
    """`auto` sends where there is a W&B key (and WANDB_MODE does not say otherwise); `offline` writes files that
    `ppe-lora track sync RUN` sends later."""
    wandb: WandbTrack | None = None
    weave: WeaveTrack | None = None
