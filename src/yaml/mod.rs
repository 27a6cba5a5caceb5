//! YAML documents with source positions, read within limits.
