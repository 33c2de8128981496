"""Files of torch.save, read by position, without torch, and nothing of them executed."""
