"""Networks and pretrained weights. An experiment may name any other `torch.nn.Module`."""
