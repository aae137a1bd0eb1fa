"""Images from files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cahp_opt.runs.texts import TextError


def read_picture(path: Path, channels: int) -> Any:
    """An image of Pillow in the colours that a model reads.

    Args:
        path: its file; of several frames the first is taken.
        channels: 1 for grey, 3 for colours, 4 for colours and their opacity.

    Raises:
        TextError: if it cannot be understood.
        OSError: if it cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    mode = {1: "L", 4: "RGBA"}.get(channels, "RGB")
    try:
        with Image.open(path) as file:
            return file.convert(mode)
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        raise TextError(f"{path} is not an image that can be read ({error}); remove it.") from None
    except OSError as error:
        if error.errno is not None:  # of the file system; Pillow's own have no number
            raise
        raise TextError(f"{path} is damaged ({error}); remove it.") from None
