"""The checks before learning: is the data sane, the loss right, the gradient true, and can the model learn at all."""
