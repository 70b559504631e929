"""Connections to a Redis server: by URL, over TLS, or to the embedded server of this machine."""
