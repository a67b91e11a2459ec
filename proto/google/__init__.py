"""Well-known types, in the pool of this package."""
