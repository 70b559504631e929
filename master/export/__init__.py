"""Export of a search's ended trials in the formats of other programs, from the folder alone."""
