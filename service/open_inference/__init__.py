"""The Open Inference Protocol, whatever it travels over."""
