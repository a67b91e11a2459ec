"""What the gateway tells of itself and of each request: metrics, logs and traces."""
