"""What this process gives up before its guest runs, and how it does without."""
