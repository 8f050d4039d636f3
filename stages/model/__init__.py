"""The network and its training, used by the stages `train` and `evaluate`."""
