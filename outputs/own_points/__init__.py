"""What outputs share that keep restore points themselves, without a backup program such as restic."""
