//! Deployment with helm: running it, watching the rollout and saying why it failed.
