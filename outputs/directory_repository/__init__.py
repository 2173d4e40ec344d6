"""A repository in a directory: plain files for each restore point. See res/docs/directory-output.md."""
