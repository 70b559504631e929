"""The code of a user's task: which files are shipped, their digest, and where they are kept."""
