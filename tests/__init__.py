"""The suite. A package, so that an installed one of the same name cannot take its place."""
