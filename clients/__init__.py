"""The clients that people have, as they come from PyPI and npm, against a live server."""
