"""The terminal: the command ``cahp``."""

from cahp_opt.cli.stages import app, main

__all__ = ["app", "main"]
