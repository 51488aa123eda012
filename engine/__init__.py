"""What training and evaluation share: loop, losses, precision, distributed, checkpoints."""
