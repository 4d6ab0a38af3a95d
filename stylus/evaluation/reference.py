"""The real pictures that FID and KID compare with: a folder of them, or a file of what was seen in one."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float
from PIL import Image

from stylus.errors import InvalidInput
from stylus.evaluation.features import BATCH, Features
from stylus.evaluation.metrics import Moments, moments
from stylus.pocket import ROOT
from stylus.records import OnProgress, Progress

POCKET = ROOT / "reference.npz"
"""What the pocket CLIP sees in drawn (not generated) pictures of the pocket prompts: examples/pocket/reference.py."""
ENDINGS = {".png", ".jpg", ".jpeg", ".webp"}


@dataclass(frozen=True)
class Reference:
    """A set of real pictures, as features see them."""

    name: str
    moments: Moments
    vectors: Float[np.ndarray, "n d"] | None
    """None where only mean and covariance are known: there is no KID then."""

    @classmethod
    def open(cls, path: Path, features: Features, on_progress: OnProgress) -> "Reference":
        """A folder of pictures (read with those below it), or an .npz with `vectors`, or with `mu` and `sigma`, of the
        same features. Raises InvalidInput."""
        if path.is_dir():
            vectors = _seen(path, features, on_progress)
            return cls(path.name, moments(vectors), vectors)
        try:
            with np.load(path, allow_pickle=False) as file:
                if "features" in file and str(file["features"]) != features.name:
                    raise InvalidInput(
                        f"{path} was made with the features {str(file['features'])!r}, these are {features.name!r}: "
                        "FIDs compare only under one model."
                    )
                if "vectors" in file:
                    vectors = file["vectors"].astype(np.float32)
                    return cls(path.stem, moments(vectors), vectors)
                return cls(path.stem, Moments(file["mu"], file["sigma"]), None)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InvalidInput(
                f"{path} is no reference ({error}): name a folder of pictures, or an .npz with `vectors`, or with `mu` "
                "and `sigma`."
            ) from error

    def save(self, path: Path, features: Features) -> None:
        """Writes an .npz that `open` reads, so that a folder is looked at once."""
        if self.vectors is not None:
            np.savez_compressed(path, vectors=self.vectors.astype(np.float16), features=np.array(features.name))


def _seen(folder: Path, features: Features, on_progress: OnProgress) -> Float[np.ndarray, "n d"]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
    if len(paths) < 2:
        raise InvalidInput(f"{folder} holds {len(paths)} pictures ({', '.join(sorted(ENDINGS))}): FID needs many.")
    parts = []
    for start in range(0, len(paths), BATCH):
        on_progress(Progress(stage="looking: reference", done=start, total=len(paths)))
        try:
            parts.append(features.images([Image.open(path) for path in paths[start : start + BATCH]]))
        except (OSError, Image.DecompressionBombError) as error:
            raise InvalidInput(f"A picture in {folder} can't be read ({error}): mend or remove it.") from error
    return np.concatenate(parts)
