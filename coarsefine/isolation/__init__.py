"""Keep the packages of this program apart from packages of the same name in a user's code."""
