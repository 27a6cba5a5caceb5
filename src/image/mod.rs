//! Container images: reading archives, pushing to registries, pruning tags.
