"""What training and evaluation share: the loop, losses, precision, processes, checkpoints."""
