"""What outlives a compile that is killed, and what compiles share."""
