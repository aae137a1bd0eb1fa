"""Folders that hold models: loading and saving them."""
