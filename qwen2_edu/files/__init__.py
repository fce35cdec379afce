"""What loading and saving stand on: weights, hashes, devices, whole files."""
