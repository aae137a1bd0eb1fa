"""Sound from WAV files, as numbers."""

from __future__ import annotations

import wave
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cahp_opt.runs.texts import TextError

_WIDE = {1: "<u1", 2: "<i2", 4: "<i4"}  # bytes of a number


def read_wave(path: Path, rate: int, seconds: float) -> NDArray[np.float32]:
    """The beginning of a sound, the mean of its channels, from -1 to 1, ``[samples]``.

    Args:
        path: a WAV file of whole numbers.
        rate: the samples per second that the model was trained on.
        seconds: the most that is read.

    Raises:
        TextError: if it is not such a file, has another rate, or is empty.
        OSError: if it cannot be read.
    """
    try:
        with wave.open(str(path), "rb") as file:
            found, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = file.readframes(min(file.getnframes(), round(seconds * found)))
    except (wave.Error, EOFError) as error:
        raise TextError(
            f"{path} is not a WAV file of whole numbers ({error}); {_converting(path, rate)}."
        ) from None
    if found != rate:
        raise TextError(
            f"{path} has {found} samples per second, and the model reads {rate}; {_converting(path, rate)}."
        )
    data = data[: len(data) // (channels * width) * channels * width]
    if not data:
        raise TextError(f"{path} holds no sound; remove it.")
    if width == 3:  # no such type: the bytes become the upper ones of four
        raw = np.frombuffer(data, np.uint8).reshape(-1, 3)
        numbers = np.pad(raw, ((0, 0), (1, 0))).view("<i4")[:, 0].astype(np.float64)
        width = 4
    else:
        numbers = np.frombuffer(data, _WIDE[width]).astype(np.float64)
    numbers = numbers - 128 if width == 1 else numbers
    frames: NDArray[np.float64] = numbers.reshape(-1, channels) / 2.0 ** (8 * width - 1)
    mixed: NDArray[np.float32] = np.mean(frames, axis=1).astype(np.float32)
    return mixed


def _converting(path: Path, rate: int) -> str:
    return f"convert it, for instance with `ffmpeg -i {path.name} -ar {rate} -ac 1 -c:a pcm_s16le new.wav`"
