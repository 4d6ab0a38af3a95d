"""What STYLUS_CHECKPOINTS configures, by names alone: nothing is opened, and torch is not needed."""

from collections.abc import Mapping

from stylus.errors import CheckpointError
from stylus.pocket import PIPELINE
from stylus.records import BaseModelFamily


def source_of(configured: Mapping[str, str], family: BaseModelFamily, name: str | None = None) -> str:
    """Where the family's checkpoint of that name, or its first, is configured to be. Raises CheckpointError, which says
    what to set, when there is none."""
    keys = [key for key in configured if key.partition(":")[0] == family]
    if name is not None:
        if f"{family}:{name}" not in configured:
            named = [key.partition(":")[2] for key in keys if ":" in key]
            raise CheckpointError(
                f"no checkpoint {name!r} is configured for {family.value}: "
                + (f"use {', '.join(named)}, " if named else "leave the name out, ")
                + f"or set STYLUS_CHECKPOINTS={family.value}:{name}=FOLDER_OR_HUB_ID."
            )
        return configured[f"{family}:{name}"]
    if keys:
        return configured[family if family in configured else keys[0]]
    if family is BaseModelFamily.POCKET:
        return str(PIPELINE)
    raise CheckpointError(
        f"no checkpoint is configured for {family.value}: set "
        f"STYLUS_CHECKPOINTS={family.value}=FOLDER_OR_HUB_ID, or use the base model pocket."
    )


def queue_of(family: BaseModelFamily, name: str | None) -> str:
    """The queue of what is drawn with that checkpoint."""
    return f"{family}:{name}" if name else family.value


def queues_of(configured: Mapping[str, str]) -> set[str]:
    """The queues of all that can be drawn with these."""
    return {BaseModelFamily.POCKET.value, *(key.partition(":")[0] for key in configured), *configured}
