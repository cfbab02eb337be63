"""What is measured, against whom, and where it got to. `make bench` is `python -m benchmarks`."""
