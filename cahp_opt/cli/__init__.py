"""The terminal: the command ``cahp``."""

from cahp_opt.cli.commands import app
from cahp_opt.cli.running import main

__all__ = ["app", "main"]
