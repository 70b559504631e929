"""`master launch` and `master plan`: they run a search's stages and watch their trials."""
