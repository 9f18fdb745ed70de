"""What the kernel tells of the machine: mounts, control groups, memory. No policy, and no torch."""
