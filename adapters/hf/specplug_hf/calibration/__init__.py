"""What `specplug calibrate` measures of a model, its drafts and a device: times over a grid, acceptance by rank."""
