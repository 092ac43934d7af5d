"""A model over texts or images, once: batches, passes, processes, and the table that is left."""
