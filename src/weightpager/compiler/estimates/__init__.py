"""What a compile will take, in memory, storage and time, told before and while it runs."""
