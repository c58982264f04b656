"""The experience side: environments, rollout workers, fragments and the replay buffer."""
