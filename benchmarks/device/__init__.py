"""What a whole device process takes: memory, start and throughput, beside what people would run instead."""
