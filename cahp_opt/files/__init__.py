"""Files and folders, written whole and read with care."""
