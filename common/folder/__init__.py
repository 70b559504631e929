"""The checkpoint folder: durable files, records, checkpoints and their names."""
