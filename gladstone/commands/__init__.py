"""What the commands of all stages share: errors to exit codes, options, progress."""
