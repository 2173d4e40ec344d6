"""A repository in RBD: images with a snapshot for each restore point. See res/docs/rbd-output.md."""
