"""What master and worker must agree on: records, wire format, queue, names of files. No torch."""
