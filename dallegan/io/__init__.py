"""Files, buckets, images, weights and command lines."""
