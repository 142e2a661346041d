"""Sources of captioned pictures, and the pipeline that batches them."""
