//! The runner's configuration: typed, defaulted and checked.
