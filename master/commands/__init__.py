"""The smaller commands of the master. Each returns the text to print."""
