"""The engine. It takes claimed trials, trains them as arrays of trials, and yields boundaries."""
