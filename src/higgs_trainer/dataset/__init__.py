"""A prepared dataset becomes examples, packs and batches."""
