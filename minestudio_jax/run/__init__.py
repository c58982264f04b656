"""The conductor: starts the experience side and the learner, runs them, and stops them in order."""
