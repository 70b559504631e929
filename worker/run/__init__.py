"""The life of a worker: start, claim, train, record, leave."""
