"""What every section of the settings tree has in common: no misspelt names, no change while running."""

from pydantic import BaseModel, ConfigDict


class Section(BaseModel):
    """A part of the settings tree."""

    model_config = ConfigDict(extra="forbid", frozen=True)
