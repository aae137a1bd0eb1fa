"""Settings of the random tests (the same instances every time, without a clock), and the recorder of
what works for which architecture."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from support_recorder import SupportRecorder

settings.register_profile(
    "default",
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow],
    database=None,
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=250)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--support-json",
        metavar="FILE",
        type=Path,
        help="write which check passed for which architecture to FILE",
    )


def pytest_configure(config: pytest.Config) -> None:
    path = config.getoption("--support-json")
    if path is not None:
        config.pluginmanager.register(SupportRecorder(path), "support-recorder")
