"""How steps are computed: the device, the width of an array, graphs and the compiler."""
