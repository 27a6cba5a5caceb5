//! Talking to Gitea: client, registration, poller and reporter.
