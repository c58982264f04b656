"""What several rooms share: policy versions on disk, metrics, timing, the live board."""
