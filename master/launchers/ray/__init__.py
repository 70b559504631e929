"""Workers as actors of an existing Ray cluster."""
