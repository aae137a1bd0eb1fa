"""The terminal: the command ``cahp``."""

from cahp_opt.cli.commands import app, main

__all__ = ["app", "main"]
