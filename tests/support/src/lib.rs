//! A stand-in for Gitea, for the tests and the demo.
