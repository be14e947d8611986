"""What watches a run from outside: evaluation, pictures, throughput, records."""
