"""What a user reads about a stage: the summary, the tables and the report page."""
