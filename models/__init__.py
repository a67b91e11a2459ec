"""The build side of blockserve: blocks, architectures, training, export."""
