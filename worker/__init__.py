"""Claims trials, trains them as stacked arrays, records what came of them."""
