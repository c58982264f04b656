"""The learning side: advantages, losses, the jitted update, checkpoints and publishing. Never imports Ray."""
