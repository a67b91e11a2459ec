"""What benchmarks are made of: loads, the servers that they run, and reports."""
