"""What compiles cost: time by stage, memory, and the speed of training."""
