"""Methods that run the model to choose, one file each; add yours here."""

__all__: list[str] = []
