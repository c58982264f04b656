"""Environments: the interface, the action space, process hosts and the embedded voxel world."""
