"""What a run writes and needs to go on: whole files, the state beside the checkpoints, the ending."""
