"""The search file and its content: space, stages, trials. Reads no folder and no Redis."""
