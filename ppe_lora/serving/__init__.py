"""A model behind an HTTP API, and the page at `/`."""
