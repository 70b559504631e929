"""Code that master and worker share: records, wire format, queue, file names. No torch."""
