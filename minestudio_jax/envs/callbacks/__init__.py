"""What may take part in an episode of Minecraft besides the player: starts, rewards, ends, limits."""
