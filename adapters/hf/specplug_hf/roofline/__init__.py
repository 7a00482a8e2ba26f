"""Times of a model's shape with random weights, part by part, against what the device's figures allow."""
