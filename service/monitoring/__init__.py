"""What is looked up when somebody asks: Prometheus, or a person without it."""
