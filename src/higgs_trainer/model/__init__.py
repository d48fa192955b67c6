"""Load, adapt and describe Higgs Audio models, and encode examples for them."""
