"""The ways of research code, against which ours are measured."""
