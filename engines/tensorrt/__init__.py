"""TensorRT and TensorRT-RTX, through one implementation: what differs is in `flavour`."""
