"""What a model reads: texts, images or recordings of sound."""

from __future__ import annotations

from enum import Enum


class Medium(Enum):
    """What the examples of a run are."""

    TEXT = "texts"
    IMAGE = "images"
    SOUND = "recordings"

    @property
    def option(self) -> str:
        """The options of the command line that give it, for messages."""
        return {
            Medium.TEXT: "`--text FILE` or `--data SOURCE`",
            Medium.IMAGE: "`--images FOLDER`",
            Medium.SOUND: "`--audio FOLDER`",
        }[self]

    @property
    def endings(self) -> tuple[str, ...]:
        """The endings of its files, in small letters; none for texts, whose files end in any way."""
        return {
            Medium.TEXT: (),
            Medium.IMAGE: (
                ".bmp",
                ".gif",
                ".jpeg",
                ".jpg",
                ".png",
                ".ppm",
                ".tif",
                ".tiff",
                ".webp",
            ),
            Medium.SOUND: (".wav", ".wave"),
        }[self]
