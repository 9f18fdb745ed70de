"""Training and scoring a dense model: on which device, under which masks, by which loss, for how long. Torch."""
